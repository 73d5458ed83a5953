"""`python -m amed_env` is `amed`."""

from amed_env.cli import main

main()
