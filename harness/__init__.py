"""Train a grid of networks on Ray and keep every result as Parquet.

Read the modules in the order the data passes through them::

    grid -> trials -> fanout -> train -> gradients -> store

`records` names every column that leaves this package. Nothing is imported here, so that
`import harness.train` needs torch but not ray, pydantic or pyarrow.
"""
