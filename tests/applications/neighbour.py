"""A module beside an application, found because an application's own folder is on its path."""

NAME = "neighbour"
