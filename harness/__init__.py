"""Train a grid of networks on Ray and keep every result as Parquet.

The data passes through four packages, each of which knows only those below it::

    study     what is asked: a YAML file becomes a grid, a grid becomes trials
    training  one pack of trials: from images to rows
    results   the rows: written once, read back checked
    cluster   Ray: places packs on workers, retries, stops

The modules beside them are commands: options in, text out. Nothing is imported here, so that
`import harness.training.train` needs torch but not ray, pydantic or pyarrow.
"""
