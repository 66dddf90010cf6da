"""The exit codes of all commands, the same in each.

====  ================================================================================
0     complete
1     failed, also because a list, a lake or a server cannot be used
2     wrong use: an argument, an option or a setting is missing or invalid
3     partial: the output names the conversations that failed, differ or are stale
130   interrupted
141   nothing reads the output any more, as after ``| head``
====  ================================================================================
"""

COMPLETE = 0
FAILED = 1
WRONG_USE = 2
PARTIAL = 3
INTERRUPTED = 130
CLOSED_PIPE = 141
