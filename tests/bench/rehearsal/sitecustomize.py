"""Python imports it when it starts: a process that finds this folder on its path is on a make-believe machine."""

from tests.bench import machine

machine.install()
