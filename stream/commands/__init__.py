"""The commands, a file each; `stream.__main__` puts them together."""
