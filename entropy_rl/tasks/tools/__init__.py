"""Tools: the problems of any task, with functions that the model may call.

calls.py       reads tool calls in a turn
tool.py        a tool: function and schema
calculator.py  exact rational arithmetic
python.py      scripts in a sandbox
sandbox.py     starts and limits the sandboxed process
confined.py    the program in it
task.py        the environment `Tools`
"""

from entropy_rl.tasks.tools.task import Tools

__all__ = ["Tools"]
