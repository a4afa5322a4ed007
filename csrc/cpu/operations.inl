// Every operation over `Simd`, and their table; included once by each instruction set's source, in its namespace.
#include "generate.inl"
#include "storage.inl"
#include "move.inl"
#include "replay.inl"
#include "project.inl"
