// What cmake/check_tier_symbols.cmake must refuse: a tier that also exports an inline function, of
// which the linker could keep this copy for the whole program.
namespace sightline {

inline int SharedHelper(int x) { return x + 1; }

namespace leaky {

using Helper = int (*)(int);
Helper GetTable();
Helper GetTable() { return &SharedHelper; }

}  // namespace leaky

}  // namespace sightline
