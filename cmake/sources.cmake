# The sources Sightline is built from: one place for versions, addresses and SHA-256 sums.
#
# dependencies.cmake and fetch_sources.cmake read this file; `run` reads the versions. Each source has
#   URL, SHA256                    the tarball that GitHub serves;
#   DEBIAN_VERSION, DEBIAN_SHA256  the same files as the Debian archive carries them (<name>_<version>.orig.tar.*),
#                                  for machines that reach a Debian mirror and nothing else.
#
# How the sums were checked: every DEBIAN_SHA256 was computed from the tarball. Highway's and Catch2's are GitHub's own
# tarballs, so both sums are equal. pthreadpool and FXdiv are packed again by Debian; their GitHub sums were computed from
# `git archive <commit> | gzip -cn`, whose files equal Debian's and whose sums other distributions publish for that address.

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

# Catch2: only for the tests.
set(SIGHTLINE_CATCH2_VERSION 3.7.1)
set(SIGHTLINE_CATCH2_URL https://github.com/catchorg/Catch2/archive/refs/tags/v3.7.1.tar.gz)
set(SIGHTLINE_CATCH2_SHA256 c991b247a1a0d7bb9c39aa35faf0fe9e19764213f28ffba3109388e62ee0269c)
set(SIGHTLINE_CATCH2_DEBIAN_VERSION 3.7.1)
set(SIGHTLINE_CATCH2_DEBIAN_SHA256 ${SIGHTLINE_CATCH2_SHA256})
