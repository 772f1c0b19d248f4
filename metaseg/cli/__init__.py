"""How commands start: configuration, command lines, the `metaseg` program."""
