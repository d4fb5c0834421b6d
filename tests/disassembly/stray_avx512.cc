// What check_vnni_encoding.cmake must refuse although its dot product is right: an object with a
// single instruction of AVX-512, STRAY.
namespace sightline {

void StrayAvx512();
void StrayAvx512() {
  asm volatile("%{vex%} vpdpbusd %%ymm2, %%ymm1, %%ymm0" : : : "xmm0");
  asm volatile(STRAY : : : "xmm0", "eax");
}

}  // namespace sightline
