"""The subcommands of `amed`, one file each: options, and what the command does.

`amed --help` imports them all and should come at once. So what is quick to import stands at the top of a file, and what
brings torch, the simulators of devices or learners is imported in the function that runs.
"""
