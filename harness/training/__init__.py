"""One pack of trials: from images to rows.

Takes the trials of a pack, the images and a device; returns their `TrialRows`. The only files it
writes are prepared data sets and the checkpoints of long trainings. Read in this order::

    train                 the loop, from first batch to last
    learner               a step, and how a GPU replays it
    networks -> blocks    our own networks; graphs: torchvision's, rewritten
    images -> sources     batches, and the files they come from
    optimizers            SGD or AdamW, schedule, borrowed flow
    gradients             the probe
    quality -> folding    calibration, classes, and batch norm folded away
    checkpoints, provenance

Needs torch and the standard library only. Nothing is imported here, so that the driver, which has
no torch, can ask `provenance` for the digest of the code.
"""
