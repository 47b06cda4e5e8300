"""Face videos on disk: raw video → face tracks → WebDataset tars → batches.

Knows no models and no objectives. Importing the package imports nothing else, so that command lines
and loader workers start quickly; take what is needed from its modules: `shards.schema`,
`shards.index`, `shards.manifest` (the disk format), `shards.stream` (batches), `shards.ingest`.
"""
