"""Foreign videos in, clips of faces out. The way of a run, by the files it goes through:

    cli → run → request          what is asked for: its videos, and what tells it from another run
      inputs, annotations        the files of a folder, or the rows of a table (`tables`, `splits`);
                                 or items that an adapter found (`shards.datasets`)
    publish, journal             a folder aside, for one run at a time, gone on with after a stop
    pool or cluster              several videos at once, here or on Ray; results in their order
      isolate → zygote           a job to a disposable process: its result, or why there is none
        work → survey            first pass: times, damage, shots and faces, by `read` (`folder`,
                                 `numbering`), `picture`, `timing`, `cuts`, `detect` and `faces`
        work → clips → encode    second pass: what is kept, cropped and stored (with `derived`)
    pack → write                 records, and tars of the same bytes each time
    publish                      the folder gets its name

    redo → torn → remake         shards of a finished folder that a training could not read
    extract                      one video to its face, in memory: what a deployed model calls
    inspect                      `verify` and `stats`: what a finished folder holds

`settings` says what may be asked, `storage` what is no fault of a video, `models` whether a
detector's file is the right one, `progress` how far a run is. Importing the package loads neither a
decoder nor OpenCV: the process that packs the shards needs none.
"""
