# The sources Sightline is built from: one place for versions, addresses and SHA-256 sums.
#
# dependencies.cmake and fetch_sources.cmake read this file; `run` reads the versions. Each source has
#   URL, SHA256                    the tarball that GitHub serves;
#   DEBIAN_VERSION, DEBIAN_SHA256  the same files as the Debian archive carries them (<name>_<version>.orig.tar.*),
#                                  for machines that reach a Debian mirror and nothing else.
#
# How the sums were checked: every DEBIAN_SHA256 was computed from the tarball. Highway's, Catch2's and Google Benchmark's are
# GitHub's own tarballs, so both sums are equal. The others are packed again by Debian; their GitHub sums were computed from
# `git archive <commit> | gzip -cn`, whose files equal Debian's. Other distributions and projects publish the same sums for the
# addresses of pthreadpool, FXdiv, Abseil and oneDNN; for those of XNNPACK and cpuinfo no second opinion was found. Should
# GitHub's tarball not match, fetch_sources.cmake says so and takes Debian's.

# Highway: SIMD operations; headers only, nothing of it is compiled apart from our own kernels.
set(SIGHTLINE_HIGHWAY_VERSION 1.3.0)
set(SIGHTLINE_HIGHWAY_URL https://github.com/google/highway/archive/refs/tags/1.3.0.tar.gz)
set(SIGHTLINE_HIGHWAY_SHA256 07b3c1ba2c1096878a85a31a5b9b3757427af963b1141ca904db2f9f4afe0bc2)
set(SIGHTLINE_HIGHWAY_DEBIAN_VERSION 1.3.0)
set(SIGHTLINE_HIGHWAY_DEBIAN_SHA256 ${SIGHTLINE_HIGHWAY_SHA256})

# pthreadpool: the thread pool that XNNPACK, TensorFlow Lite and ExecuTorch share. It has no releases; this is 2024-06-16.
set(SIGHTLINE_PTHREADPOOL_VERSION 560c60d)
set(SIGHTLINE_PTHREADPOOL_URL
    https://github.com/google/pthreadpool/archive/560c60d342a76076f0557a3946924c6478470044.tar.gz)
set(SIGHTLINE_PTHREADPOOL_SHA256 8d8ebab96df6aa12922643060e72c43bfdca9fd80cf5aacaf7391bc6850560a3)
set(SIGHTLINE_PTHREADPOOL_DEBIAN_VERSION 0.0~git20240616.560c60d)
set(SIGHTLINE_PTHREADPOOL_DEBIAN_SHA256 4cc3cbd933b28131d2a34edc54f76af9fb41bc490af5eae1a5bd3cd07ea90708)

# FXdiv: one header that pthreadpool includes. No releases either; this is 2020-04-17.
set(SIGHTLINE_FXDIV_VERSION b408327)
set(SIGHTLINE_FXDIV_URL https://github.com/Maratyszcza/FXdiv/archive/b408327ac2a15ec3e43352421954f5b1967701d1.tar.gz)
set(SIGHTLINE_FXDIV_SHA256 9ccf554541666b5c089ad5dd465141d671c99971f36d72f313652f5c49ffce14)
set(SIGHTLINE_FXDIV_DEBIAN_VERSION 0.0~git20200417.b408327)
set(SIGHTLINE_FXDIV_DEBIAN_SHA256 7953482badaf4cb34026c3487c257b8e4ab2df061c019bd6fabbbc12ad52c44b)

# Abseil: its CRC32C, for files of K and V. The long-term version that Debian 13 carries; google/crc32c, which chooses its
# instructions at run time, is in no Debian suite.
set(SIGHTLINE_ABSEIL_VERSION 20240722.0)
set(SIGHTLINE_ABSEIL_URL https://github.com/abseil/abseil-cpp/archive/refs/tags/20240722.0.tar.gz)
set(SIGHTLINE_ABSEIL_SHA256 f50e5ac311a81382da7fa75b97310e4b9006474f9560ac46f54a9967f07d4ae3)
set(SIGHTLINE_ABSEIL_DEBIAN_VERSION 20240722.0)
set(SIGHTLINE_ABSEIL_DEBIAN_SHA256 df6d1f5ef540725f3851201176a60486aab332410788465c9877910bb471c34a)

# Catch2: only for the tests.
set(SIGHTLINE_CATCH2_VERSION 3.7.1)
set(SIGHTLINE_CATCH2_URL https://github.com/catchorg/Catch2/archive/refs/tags/v3.7.1.tar.gz)
set(SIGHTLINE_CATCH2_SHA256 c991b247a1a0d7bb9c39aa35faf0fe9e19764213f28ffba3109388e62ee0269c)
set(SIGHTLINE_CATCH2_DEBIAN_VERSION 3.7.1)
set(SIGHTLINE_CATCH2_DEBIAN_SHA256 ${SIGHTLINE_CATCH2_SHA256})

# Google Benchmark: only for the benchmark.
set(SIGHTLINE_BENCHMARK_VERSION 1.9.1)
set(SIGHTLINE_BENCHMARK_URL https://github.com/google/benchmark/archive/refs/tags/v1.9.1.tar.gz)
set(SIGHTLINE_BENCHMARK_SHA256 32131c08ee31eeff2c8968d7e874f3cb648034377dfc32a4c377fa8796d84981)
set(SIGHTLINE_BENCHMARK_DEBIAN_VERSION 1.9.1)
set(SIGHTLINE_BENCHMARK_DEBIAN_SHA256 ${SIGHTLINE_BENCHMARK_SHA256})

# XNNPACK, only for the benchmark: a peer. No releases; this is 2024-11-08, of the last months in which it had an operator
# for attention.
set(SIGHTLINE_XNNPACK_VERSION 4ea82e5)
set(SIGHTLINE_XNNPACK_URL https://github.com/google/XNNPACK/archive/4ea82e595b36106653175dcb04b2aa532660d0d8.tar.gz)
set(SIGHTLINE_XNNPACK_SHA256 3ef066f2f9b8ac474cd3fd606c601a30bbab59a56406c69019610339f02b6032)
set(SIGHTLINE_XNNPACK_DEBIAN_VERSION 0.0~git20241108.4ea82e5)
set(SIGHTLINE_XNNPACK_DEBIAN_SHA256 90bde2caef0f880f627bab0dc805a86c4b8070cd98e3243db3046ab3f3be1a99)

# cpuinfo: what XNNPACK asks about the CPU. No releases; this is 2025-09-05.
set(SIGHTLINE_CPUINFO_VERSION 877328f)
set(SIGHTLINE_CPUINFO_URL https://github.com/pytorch/cpuinfo/archive/877328f188a3c7d1fa855871a278eb48d530c4c0.tar.gz)
set(SIGHTLINE_CPUINFO_SHA256 5ceb68cc713cebd0a299f6f852ce6fed2dd80b62510f6e5e82cbbdc8fa91b710)
set(SIGHTLINE_CPUINFO_DEBIAN_VERSION 0.0~git20250905.877328f)
set(SIGHTLINE_CPUINFO_DEBIAN_SHA256 557ca404a3836b9f335a3a06b65ff9fe9dbaaefab7fb5c0185f53d9f33615a10)

# oneDNN, only for the benchmark: a peer. Debian's tarball lacks two libraries that upstream carries along, a logger and
# Google Test; neither is needed here.
set(SIGHTLINE_ONEDNN_VERSION 3.7.2)
set(SIGHTLINE_ONEDNN_URL https://github.com/uxlfoundation/oneDNN/archive/refs/tags/v3.7.2.tar.gz)
set(SIGHTLINE_ONEDNN_SHA256 21068e8cd2bf4077916bf31452eab5ac9998e620e1b22630a88f79c334857a5c)
set(SIGHTLINE_ONEDNN_DEBIAN_VERSION 3.7.2+ds)
set(SIGHTLINE_ONEDNN_DEBIAN_SHA256 0cc51ca26c1af6a2bb1e71e378e7046f3ceb3e71791ee9d4e246d50f904a6ea6)
