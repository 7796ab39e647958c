"""The rooms of `benchmarks/overhead.py`: who is measured (`pairs`, `recorders`), how (`loop`, `measure`), and
what is said of it (`progress`, `report`); `command` is its command line."""
