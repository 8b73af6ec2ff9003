"""Ray: place packs on workers, retry, stop, collect.

In go the trials that a store lacks and a `Request`; out come their rows and failures, in the store,
and news for a `Watcher`. Read in the order of a run::

    request -> shards -> fanout -> connection, nodes -> worker, packs, news, desk

`fanout` runs the passes, `worker` trains in other processes, `news` tells of it meanwhile, `desk`
keeps the driver's books. `packs` trains one pack and commits it, for `worker` and, where there is no
Ray, for `alone`: processes that share a folder and nothing else.
`ray_internals` holds what Ray does not promise to keep, `scratch` a run's folders on this machine.
`work`, `forecast` and `costs` estimate what a run takes, `machine` says what this one gives and
lacks, `guard` ends a run whose Ray is gone, `preflight` asks every node whether it could
train. The files beside them start clusters.

Nothing is imported here. `request`, `shards`, `packs`, `alone`, `forecast`, `costs`, `machine` and
`preflight` import without ray; the others need it.
"""
