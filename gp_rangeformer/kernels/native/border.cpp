// What Python compares with its own numbers when it loads the library.

#include "border.h"
#include "program.h"

extern "C" int shared_constant(int which) {
    const int constants[] = {COLUMNS, BATCH, sizeof(Node), sizeof(Program)};
    return which < int(sizeof constants / sizeof *constants) ? constants[which] : -1;
}
