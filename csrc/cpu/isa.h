// Everything that an instruction set's file needs from outside, included before its target region begins.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "table.h"
