"""One pack of trials: from images to rows.

In go the trials of a pack and a device; out come their `TrialRows`. Read in this order::

    train -> learner -> networks -> blocks | graphs
          -> images -> sources
          -> optimizers, gradients (the probe), checkpoints, provenance

Torch and the standard library only, and nothing is imported here: the driver asks `provenance` for
the digest of the code without torch.
"""
