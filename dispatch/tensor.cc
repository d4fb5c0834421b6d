#include "sightline/tensor.h"

namespace sightline {

const char* Name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kI8:
      return "i8";
  }
  return "?";
}

const char* Name(Precision precision) {
  switch (precision) {
    case Precision::kF32:
      return "f32";
    case Precision::kF16:
      return "f16";
    case Precision::kI8:
      return "i8";
    case Precision::kI8Fine:
      return "i8_fine";
    case Precision::kBF16:
      return "bf16";
    case Precision::kMixed16:
      return "mixed16";
  }
  return "?";
}

int64_t SizeBytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kI8:
      return 1;
  }
  return 0;
}

}  // namespace sightline
