"""The same kernel with what the guard is there for: one more pass, one more allocation, 3% more instructions. A copy of the
sources is changed and compiled; its three sets stand where those are that valgrind does not know.
"""

from __future__ import annotations

from pathlib import Path

from tests.guard import kernels

CASE = "perturb float32 rademacher"
TILE = 2048
BEGIN = "  for (int64_t at = 0; at < count; at += TILE) {\n    const int size"
INNER = "    const MoveSink<In, Out, MODE> sink{"
FAULTS = {
    "pass": (BEGIN, '  for (int64_t at = 0; at < count; at += 16) __asm__ volatile("" ::"r"(in[at]));\n' + BEGIN),
    "allocation": (
        BEGIN,
        '  float* kept = new float[64];\n  __asm__ volatile("" ::"r"(kept));\n  delete[] kept;\n' + BEGIN,
    ),
    "instructions": (INNER, '    __asm__ volatile(".rept MORE\\n nop\\n .endr");\n' + INNER),
}
"""Name of the set -> what is replaced in `moves.inl`, and by what."""
TABLES = dict(zip(FAULTS, ("avx512", "amx", "neon"), strict=True))


def source(folder: Path, per_tile: float) -> Path:
    """The changed sources; `per_tile`: instructions of a tile of weights, of which 3% are added."""
    cpu = kernels.CSRC / "cpu"
    moves, avx2 = (cpu / "moves.inl").read_text(), (cpu / "avx2.cpp").read_text()
    first, last = avx2.index('#include "kernels.inl"'), avx2.index("#pragma GCC pop_options")
    text = (
        avx2[:first]
        + '#include "vectors.inl"\n#include "storage.inl"\n#include "noise.inl"\nbool always() { return true; }\n'
    )
    tables = ""
    for name, (old, new) in FAULTS.items():
        if moves.count(old) != 1:
            raise RuntimeError(f"moves.inl holds {old!r} {moves.count(old)} times; expected once")
        (folder / f"{name}.inl").write_text(moves.replace(old, new.replace("MORE", str(round(0.03 * per_tile)))))
        text += f"""namespace {name} {{
#include "{folder / name}.inl"
void changed(const void* in, int, void* out, int, int64_t base, int64_t count, const Step& step, uint32_t stream, float scale) {{
  move_typed<Float32, Float32, PERTURB>((const float*)in, (float*)out, base, count, step, stream, scale);
}}
}}
"""
        tables += f"""const KernelTable* {TABLES[name]}_table() {{
  static KernelTable table = *avx2_table();
  table.name = "{name}", table.runs_here = always, table.perturb = {name}::changed;
  return &table;
}}
"""
    tables += "const KernelTable* neon_bf16_table() { return nullptr; }\n"
    target = folder / "faults.cpp"
    target.write_text(
        f"{text}}}\n{tables}}}\n{avx2[last:]}".replace("const KernelTable* avx2_table() { return nullptr; }", "")
    )
    return target


def program(made: list[Path], folder: Path, per_tile: float) -> Path:
    """`made`: the driver and the objects of the extension."""
    changed = kernels.compiled(source(folder, per_tile), folder)
    others = [path for path in made if not any(f"cpu-{name}" in path.name for name in TABLES.values())]
    return kernels.linked([*others, changed], folder)
