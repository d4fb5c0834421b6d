// Reads the weights: a safetensors file, of which no byte is trusted.
//
//   Safetensors file;
//   Status status = Safetensors::Read("weights.safetensors", &file);
//   if (status.ok()) status = file.Get("encoder_norm.bias", {96}, &values);
//
// The format: n as u64 little-endian, n bytes of JSON, then the data.
//
//   {"__metadata__": {"d_model": "96", ...},
//    "encoder_norm.bias": {"dtype": "F16", "shape": [96], "data_offsets": [begin, end]}, ...}
//
// Offsets count from the start of the data, which the tensors fill without gaps or overlaps. All of
// that is checked once, when reading; what it costs is one pass over the header.
#ifndef EXAMPLES_TRANSLATE_SAFETENSORS_H_
#define EXAMPLES_TRANSLATE_SAFETENSORS_H_

#include <stddef.h>

#include <map>
#include <string>
#include <vector>

#include "sightline/status.h"

namespace translate {

using sightline::Status;
using sightline::StatusCode;

// The bytes of a whole file.
Status ReadFile(const std::string& path, std::string* content);

class Safetensors {
 public:
  // On error *out is unchanged; the message says where the file contradicts the format.
  static Status Read(const std::string& path, Safetensors* out);
  static Status Parse(std::string content, Safetensors* out);

  // A text of __metadata__; null if there is none of that name.
  const std::string* Metadata(const std::string& key) const;

  // A tensor of F16 or F32 as f32, row-major. An error if there is none of that name and shape.
  Status Get(const std::string& name, const std::vector<size_t>& shape,
             std::vector<float>* values) const;

  // What the header says about one tensor.
  struct Entry {
    std::string dtype;
    std::vector<size_t> shape;
    size_t begin = 0;  // bytes, from the start of the data
    size_t end = 0;
  };

 private:
  std::string content_;
  size_t data_begin_ = 0;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, Entry> entries_;
};

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_SAFETENSORS_H_
