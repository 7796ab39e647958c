"""KCD in other people's code: command line, demo, and (to come) one thin module per codebase."""
