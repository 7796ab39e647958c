"""KCD in other people's code: the command line, the demo, and one thin profile per codebase."""
