"""Databases over HTTP: which are asked as models ``db:NAME``, what clients and traces get of their answers."""
