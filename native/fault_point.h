// Numbered steps at which a test lets the process die: SHADOWVM_FAULT="append:3" kills it at the third step of an append,
// "append:3:5" when it comes there for the fifth time; "append:3:5:stop" stops it there (SIGSTOP). Costs one comparison where the variable is not set.
//
// | operation | 1 | 2 | 3 | 4 | 5 |
// |---|---|---|---|---|---|
// | append | record begun | a block is in the buffer | before the commit is written | whole, not in the index | in the index |
// | rewind | before its record | record written, head unchanged | head changed, not flushed | | |
// | compact | victims chosen | blocks moved | fold whole, without its name | named, index unchanged | before files go |
// | pause | the guest stands | its pages are collected | | | |
// | pack | file begun | blocks written | whole, without its name | named | |
#pragma once

void FaultPoint(const char* operation, int step);
