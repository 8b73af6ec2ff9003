"""What is asked: from a YAML file to the trials of a grid.

In goes a grid file; out come a `Grid`, its frozen `Trial`s, and every mistake with its line. Read in
this order::

    architectures, facts    what may be asked: networks with their placements, data sets
    records                 every column of every table, the settings of a trial among them
    trials                  a trial, its name, its randomness
    document, forms -> grid YAML, what may stand in it, and what it means
    tuning                  the stage that gives each arm its recipe

`errors` are all that is raised on purpose, `wording` is how values are written in what a user reads, `terminal` how it is printed.
Nothing is imported here: training reads `trials` and `records` on machines without pydantic.
"""
