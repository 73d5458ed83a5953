"""`python -m amed_env` is `amed`."""

from amed_env.cli import main

if __name__ == "__main__":
    main()
