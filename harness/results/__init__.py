"""Store the rows of a study: each is written once and checked when it is read.

Takes the rows of each finished trial and returns those of all trials. Read in this order::

    store -> plans -> tables (Parquet) -> places (a folder or a bucket)

`snapshot` reads a folder once and refuses damaged files, `tally` counts the trials of a plan by
outcome, `repair` sets damaged files aside, `merging` joins folders, `lease` admits one run at a
time to a folder, `index` keeps rows in one file for buckets, and `networks` keeps users' own networks.
README.md beside this file lists every table and column.
"""

from harness.results.lease import Lease, hold, list_claims
from harness.results.merging import merge, select_trials
from harness.results.networks import keep_networks, provide_network
from harness.results.places import explain
from harness.results.plans import Plan
from harness.results.repair import find_damage, repair, set_aside, sweep
from harness.results.snapshot import Snapshot, take_snapshot
from harness.results.store import TABLES, Store, to_tables
from harness.results.tables import find_differing_columns, to_rows, to_table
from harness.results.tally import Tally

__all__ = [
    "TABLES",
    "Lease",
    "Plan",
    "Snapshot",
    "Store",
    "Tally",
    "explain",
    "find_damage",
    "find_differing_columns",
    "hold",
    "keep_networks",
    "list_claims",
    "merge",
    "provide_network",
    "repair",
    "select_trials",
    "set_aside",
    "sweep",
    "take_snapshot",
    "to_rows",
    "to_table",
    "to_tables",
]
