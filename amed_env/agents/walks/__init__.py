"""AMED's walk, as the paper describes it and as its released code behaves."""
