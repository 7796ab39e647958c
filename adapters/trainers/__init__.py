"""KCD in training loops that a library owns: one thin module for each trainer. Import the one for yours, as
``kcd_adapters.trainers.lightning``; docs/trainers.md has an example of each."""
