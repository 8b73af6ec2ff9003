"""Ray: place packs on workers, retry, stop, collect.

In go the trials that a store lacks; their rows arrive in the store. Read in this order::

    shards -> fanout

`forecast` and `costs` say what a run will take, `preflight` asks every node whether it could
train. The files beside them start clusters. Nothing is imported here: only `fanout` needs ray.
"""
