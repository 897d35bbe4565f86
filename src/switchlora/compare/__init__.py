"""`switchlora compare`: methods side by side, at equal tokens on identical batches, each with its own learning rates.

options.py   what is compared           sweep.py     two learning rates, and whether the winner's neighbours lose
plan.py      which runs that means      budget.py    how many hours that takes
results.py   one JSON file per run      processes.py runs side by side, and how they end
command.py   all of it                  tables.py    what the report shows, as plain data
"""
