"""What is asked: from a YAML file to the trials of a grid.

In goes a grid file; out come a `Grid`, its frozen `Trial`s, and every mistake with its line::

    document -> grid -> trials -> tuning

`records` names every column of every table, `errors` all that is raised on purpose, and `zoo`
torchvision's models. Nothing is imported here: training reads `trials` and `records` on machines
without pydantic.
"""
