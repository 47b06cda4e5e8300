"""Models into the registry and back, against a real SQLite store."""

import hashlib
import json
from pathlib import Path

import pytest

from launch import registry
from launch.fetching import fetch, fetched
from launch.record import create_run
from launch.store import StoreError, connect
from launch.tracking import PublishConfig, RunHandle, TrackingConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunHandle:
    folder = tmp_path_factory.mktemp("store")
    return create_run(TrackingConfig(), output=str(folder / "out"), config={}, origin={})


@pytest.fixture
def encoder(tmp_path):
    """A folder in the form of an encoder's artifact; the registry does not look inside."""

    def make(content: str = "weights") -> Path:
        folder = tmp_path / "encoder"
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text(content)
        (folder / "config.json").write_text(json.dumps({"dim": 3}))
        return folder

    return make


def publish(run, folder, **how):
    weights = folder / "model.safetensors"
    return registry.publish(run, folder, kind="encoder", weights=weights, **how)


def test_an_alias_leads_back_to_the_folder_that_was_registered(run, encoder, tmp_path):
    made = publish(run, encoder(), name="faces", alias="champion")
    assert str(made) == "models:/faces/1 (@champion)"
    found = fetch("models:/faces@champion", uri=run.uri, into=tmp_path / "got")
    assert found.parent == tmp_path / "got"
    assert (found / "model.safetensors").read_text() == "weights"
    assert (found / "config.json").exists()


def test_the_alias_moves_to_the_new_version_and_old_versions_stay(run, encoder, tmp_path):
    for content in ("first", "second"):
        made = publish(run, encoder(content), name="moving", alias="champion")
    assert made.version == 2
    contents = {
        name: (
            fetch(f"models:/moving{name}", uri=run.uri, into=tmp_path / "got") / "model.safetensors"
        ).read_text()
        for name in ("@champion", "/1", "/2", "/latest")
    }
    assert contents == {"@champion": "second", "/1": "first", "/2": "second", "/latest": "second"}


def test_what_a_run_published_before_is_found_and_its_alias_stays_where_it_was_put(
    run, encoder, capsys
):
    """The same command, given again for a finished job, moved the alias back to its model."""
    for content in ("first", "second"):
        publish(run, encoder(content), name="once", alias="champion")
    connect(run.uri).set_registered_model_alias("once", "champion", "1")

    def told():
        return capsys.readouterr().out

    again = publish(run, encoder("second"), name="once", alias="champion")
    assert str(again) == "models:/once/2"
    assert "/2 was published before; @champion stays where it is, at version 1" in told()
    new = publish(run, encoder("second"), name="once", alias="staging")
    assert str(new) == "models:/once/2 (@staging)", "an alias that nobody has is set"
    assert told() == ""
    assert registry.resolve("models:/once@champion", uri=run.uri) == "models:/once/1"
    assert registry.resolve("models:/once/latest", uri=run.uri) == "models:/once/2"
    output = str(encoder().parent / "other/out")
    other = create_run(TrackingConfig(uri=run.uri), output=output, config={}, origin={})
    theirs = publish(other, encoder("second"), name="once", alias="champion")
    assert str(theirs) == "models:/once/3 (@champion)", "of another run"
    other_views = encoder("second")
    (other_views / "config.json").write_text(json.dumps({"dim": 3, "views": 5}))
    assert publish(run, other_views, name="once").version == 4, "of another configuration"


def test_of_what_is_fetched_for_a_while_one_stays_and_what_is_read(run, encoder, tmp_path):
    for content in ("first", "second"):
        publish(run, encoder(content), name="read")
    how = {"uri": run.uri, "beside": tmp_path / "out"}
    with fetched("models:/read/1", **how) as first:
        with fetched("models:/read/2", **how) as second, fetched("models:/read/1", **how) as again:
            assert again == first, "the same content lies in the same place"
            assert (second / "model.safetensors").read_text() == "second"
        assert (first / "model.safetensors").read_text() == "first", "somebody reads it"
    with fetched("models:/read/2", **how) as second:
        assert list((tmp_path / "out/.fetched").iterdir()) == [second]
    with fetched(str(encoder("own")), **how) as own:
        assert own == encoder("own")
    assert (own / "model.safetensors").read_text() == "own"


def test_a_version_whose_alias_could_not_be_set_is_published_again(run, encoder, monkeypatch):
    client = type(connect(run.uri))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "set_registered_model_alias", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(run, encoder("half"), name="halfway", alias="champion")
    monkeypatch.undo()
    made = publish(run, encoder("half"), name="halfway", alias="champion")
    assert str(made) == "models:/halfway/2 (@champion)"


def test_a_version_names_its_kind_and_run(run, encoder):
    publish(run, encoder(), name="linked")
    version = connect(run.uri).get_model_version("linked", "1")
    files = (b"weights", b'{"dim": 3}')
    digest = hashlib.sha256(b"".join(hashlib.sha256(file).digest() for file in files)).hexdigest()
    assert version.tags == {"kind": "encoder", "content.sha256": digest}
    assert version.run_id == run.run_id
    outputs = connect(run.uri).get_run(run.run_id).outputs.model_outputs
    assert [output.model_id for output in outputs if output.model_id in version.source]


def test_a_model_without_a_name_is_logged_with_its_run(run, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}")
    weights = folder / "MLmodel"
    made = registry.publish(
        run, folder, kind="predictor", weights=weights, name=None, alias="champion"
    )
    assert made.name is None
    found = fetch(made.uri, uri=run.uri, into=tmp_path / "got")
    assert (found / "MLmodel").exists()


def test_artifacts_of_a_run_are_fetched_by_path(run, encoder, tmp_path):
    connect(run.uri).log_artifacts(run.run_id, str(encoder()), "last/encoder")
    found = fetch(f"runs:/{run.run_id}/last/encoder", uri=run.uri, into=tmp_path / "folder")
    assert (found / "model.safetensors").read_text() == "weights"
    source = f"runs:/{run.run_id}/last/encoder/config.json"
    file = fetch(source, uri=run.uri, into=tmp_path / "file")
    assert file.name == "config.json" and file.parent.parent == tmp_path / "file"
    assert json.loads(file.read_text()) == {"dim": 3}


def test_a_model_that_a_run_logged_is_fetched_by_its_kind(run, encoder, tmp_path):
    for content in ("first", "second"):
        publish(run, encoder(content), name=None)
    found = fetch(f"runs:/{run.run_id}/encoder", uri=run.uri, into=tmp_path / "got")
    assert (found / "model.safetensors").read_text() == "second"


def test_a_path_is_taken_as_it_is(run, encoder, tmp_path):
    folder = encoder()
    assert fetch(str(folder), uri=run.uri, into=tmp_path / "got") == folder
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        fetch(str(tmp_path / "nowhere"), uri=run.uri, into=tmp_path / "got")


def test_a_name_that_does_not_exist_lists_those_that_do(run, encoder, tmp_path):
    publish(run, encoder(), name="expressions")
    with pytest.raises(StoreError) as caught:
        fetch("models:/expresions@champion", uri=run.uri, into=tmp_path / "got")
    message = str(caught.value)
    assert "no model 'expresions'" in message
    assert "Did you mean 'expressions'?" in message
    assert "--tracking.register" in message
    assert not list(tmp_path.glob("*got*"))


def test_an_alias_or_version_that_does_not_exist_lists_those_that_do(run, encoder, tmp_path):
    publish(run, encoder(), name="listed", alias="tested")
    with pytest.raises(StoreError, match=r"no alias @champion; it has @tested \(version 1\)"):
        fetch("models:/listed@champion", uri=run.uri, into=tmp_path / "got")
    with pytest.raises(StoreError, match="no version 3; it has 1"):
        fetch("models:/listed/3", uri=run.uri, into=tmp_path / "got")


@pytest.mark.parametrize(
    "reference", ["models:/", "models:/a/b", "models:/a@", "models:/a", "runs:/a"]
)
def test_a_malformed_reference_shows_the_form(run, tmp_path, reference):
    with pytest.raises(StoreError, match="models:/NAME@ALIAS"):
        fetch(reference, uri=run.uri, into=tmp_path / "got")


def test_a_run_or_artifact_that_does_not_exist_is_named(run, tmp_path):
    with pytest.raises(StoreError, match="runs:/0123/encoder is not in"):
        fetch("runs:/0123/encoder", uri=run.uri, into=tmp_path / "got")
    with pytest.raises(StoreError, match="nothing cannot be fetched"):
        fetch(f"runs:/{run.run_id}/nothing", uri=run.uri, into=tmp_path / "got")
    assert not list(tmp_path.iterdir())


def test_a_store_that_does_not_exist_is_named_and_not_made(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(StoreError, match="no MLflow store at sqlite"):
        fetch("models:/faces@champion", uri=uri, into=tmp_path / "got")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_model_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        publish(run, tmp_path, name="faces")
    how = {"kind": "predictor", "weights": tmp_path / "none", "name": "faces"}
    with pytest.raises(FileNotFoundError, match="holds no MLmodel: it is no predictor"):
        registry.publish(run, tmp_path, **how)


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a@b", "a'b"])
def test_a_name_that_cannot_be_registered_is_refused_before_anything_is_uploaded(
    run, encoder, name
):
    before = len(connect(run.uri).get_run(run.run_id).outputs.model_outputs)
    with pytest.raises(StoreError, match="model name"):
        publish(run, encoder(), name=name)
    assert len(connect(run.uri).get_run(run.run_id).outputs.model_outputs) == before


@pytest.mark.parametrize("alias", ["latest", "v3", "3", "two words", ""])
def test_an_alias_that_mlflow_reserves_is_refused(alias):
    with pytest.raises(StoreError, match="alias"):
        PublishConfig(register="faces", alias=alias)


def test_an_upload_that_fails_leaves_no_version(run, encoder, monkeypatch):
    client = type(connect(run.uri))

    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(client, "log_model_artifacts", no_room)
    with pytest.raises(OSError, match="No space left"):
        publish(run, encoder(), name="unfinished", alias="champion")
    monkeypatch.undo()
    with pytest.raises(StoreError, match="no model 'unfinished'"):
        registry.resolve("models:/unfinished@champion", uri=run.uri)


def test_what_was_fetched_stays_as_it_is_for_the_job_that_reads_it(run, encoder, tmp_path):
    """Another job, refused a moment later, put its own weights in the place of a running one's."""
    publish(run, encoder("first"), name="again", alias="champion")
    reading = fetch("models:/again@champion", uri=run.uri, into=tmp_path / "got")
    inode = (reading / "model.safetensors").stat().st_ino
    publish(run, encoder("second"), name="again", alias="champion")
    other = fetch("models:/again@champion", uri=run.uri, into=tmp_path / "got")
    assert (other / "model.safetensors").read_text() == "second"
    assert (reading / "model.safetensors").read_text() == "first"
    assert fetch("models:/again/1", uri=run.uri, into=tmp_path / "got") == reading
    assert (reading / "model.safetensors").stat().st_ino == inode, "the same content stays"
    assert {p.name for p in tmp_path.iterdir()} == {"encoder", "got"}
