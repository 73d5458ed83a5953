"""What the subcommands of `amed` do; `amed_env.cli` parses their arguments."""
