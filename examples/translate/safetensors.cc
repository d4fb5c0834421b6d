#include "safetensors.h"

#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string_view>
#include <utility>

namespace translate {
namespace {

constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
constexpr size_t kLengthBytes = 8;      // of the header's length, at the start of the file
constexpr int kMaxShownNameBytes = 60;  // a hostile name must not push the reason out of a message

// The JSON that a header consists of: objects, arrays, strings and unsigned integers. Every method
// returns whether it found what it was asked for; the first failure is kept and ends the reading.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view text) : text_(text) {}

  bool AtEnd() {
    SkipSpace();
    return at_ == text_.size();
  }

  // If `c` is next, steps over it.
  bool Next(char c) {
    SkipSpace();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  bool Expect(char c) {
    if (Next(c)) return true;
    expected_[1] = c;
    return Fail(expected_);
  }

  bool ReadUnsigned(size_t* value) {
    SkipSpace();
    const size_t begin = at_;
    *value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const size_t digit = static_cast<size_t>(text_[at_] - '0');
      if (*value > (SIZE_MAX - digit) / 10) return Fail("a smaller number");
      *value = *value * 10 + digit;
    }
    return at_ > begin || Fail("an unsigned integer");
  }

  bool ReadString(std::string* value) {
    value->clear();
    if (!Next('"')) return Fail("a string");
    while (at_ < text_.size()) {
      const char c = text_[at_++];
      if (c == '"') return true;
      if (static_cast<unsigned char>(c) < 0x20) return Fail("no control character in a string");
      if (c != '\\') {
        value->push_back(c);
      } else if (!ReadEscape(value)) {
        return false;
      }
    }
    return Fail("the end of a string");
  }

  // One member of an object after another: `member` is called when its key is next.
  template <typename Member>
  bool ReadObject(Member member) {
    if (!Expect('{')) return false;
    if (Next('}')) return true;
    do {
      std::string key;
      if (!ReadString(&key) || !Expect(':') || !member(key)) return false;
    } while (Next(','));
    return Expect('}');
  }

  bool ReadArray(std::vector<size_t>* values) {
    values->clear();
    if (!Expect('[')) return false;
    if (Next(']')) return true;
    do {
      values->push_back(0);
      if (!ReadUnsigned(&values->back())) return false;
    } while (Next(','));
    return Expect(']');
  }

  // Always false, so that it can be returned.
  bool Fail(const char* expected) {
    if (status_.ok())
      status_ = Status::Error(kInvalid, "header byte %zu: expected %s", at_, expected);
    return false;
  }

  const Status& status() const { return status_; }

 private:
  void SkipSpace() {
    constexpr std::string_view kSpace = " \t\r\n";
    while (at_ < text_.size() && kSpace.find(text_[at_]) != std::string_view::npos) ++at_;
  }

  bool ReadEscape(std::string* value) {
    constexpr std::string_view kFrom = "\"\\/bfnrt";
    constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
    if (at_ == text_.size()) return Fail("the end of a string");
    const char c = text_[at_++];
    if (c == 'u') return ReadUnicodeEscape(value);
    const size_t found = kFrom.find(c);
    if (found == std::string_view::npos) return Fail("an escape that JSON knows");
    value->push_back(kTo[found]);
    return true;
  }

  bool ReadHex4(uint32_t* value) {
    *value = 0;
    for (int i = 0; i < 4; ++i) {
      constexpr std::string_view kDigits = "0123456789abcdef";
      if (at_ == text_.size()) return Fail("four hexadecimal digits");
      const char c = text_[at_];
      const char lower = c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c;
      const size_t found = kDigits.find(lower);
      if (found == std::string_view::npos) return Fail("four hexadecimal digits");
      *value = *value * 16 + static_cast<uint32_t>(found);
      ++at_;
    }
    return true;
  }

  // \uXXXX, or a surrogate pair of two, as UTF-8.
  bool ReadUnicodeEscape(std::string* value) {
    uint32_t code = 0;
    if (!ReadHex4(&code)) return false;
    if (code >= 0xDC00 && code < 0xE000) return Fail("a high surrogate first");
    if (code >= 0xD800 && code < 0xDC00) {
      uint32_t low = 0;
      if (text_.substr(at_, 2) != "\\u") return Fail("a low surrogate");
      at_ += 2;
      if (!ReadHex4(&low)) return false;
      if (low < 0xDC00 || low >= 0xE000) return Fail("a low surrogate");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    if (code < 0x80) {
      value->push_back(static_cast<char>(code));
      return true;
    }
    const int continuation = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const uint32_t lead = code < 0x800 ? 0xC0 : code < 0x10000 ? 0xE0 : 0xF0;
    value->push_back(static_cast<char>(lead | (code >> (6 * continuation))));
    for (int i = continuation - 1; i >= 0; --i) {
      value->push_back(static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F)));
    }
    return true;
  }

  std::string_view text_;
  size_t at_ = 0;
  Status status_;
  char expected_[4] = "' '";
};

bool ReadEntry(HeaderReader* reader, Safetensors::Entry* entry) {
  bool has_dtype = false, has_shape = false, has_offsets = false;
  const bool read = reader->ReadObject([&](const std::string& key) {
    if (key == "dtype") {
      has_dtype = true;
      return reader->ReadString(&entry->dtype);
    }
    if (key == "shape") {
      has_shape = true;
      return reader->ReadArray(&entry->shape);
    }
    if (key == "data_offsets") {
      has_offsets = true;
      std::vector<size_t> offsets;
      if (!reader->ReadArray(&offsets)) return false;
      if (offsets.size() != 2) return reader->Fail("two data_offsets before this");
      entry->begin = offsets[0];
      entry->end = offsets[1];
      return true;
    }
    return reader->Fail("dtype, shape or data_offsets before this");
  });
  if (!read) return false;
  if (has_dtype && has_shape && has_offsets) return true;
  return reader->Fail("dtype, shape and data_offsets before this");
}

// 0 for a type that is not read here.
size_t ElementBytes(const std::string& dtype) {
  return dtype == "F32" ? 4 : dtype == "F16" ? 2 : 0;
}

Status ValidateEntry(const std::string& name, const Safetensors::Entry& entry, size_t data_bytes) {
  if (entry.begin > entry.end || entry.end > data_bytes) {
    return Status::Error(kInvalid,
                         "%.*s is at bytes %zu to %zu of the data, of which there are %zu: is the "
                         "file truncated?",
                         kMaxShownNameBytes, name.c_str(), entry.begin, entry.end, data_bytes);
  }
  size_t bytes = ElementBytes(entry.dtype);
  if (bytes == 0) {
    return Status::Error(StatusCode::kUnsupported, "%.*s is of type %.10s, must be F16 or F32",
                         kMaxShownNameBytes, name.c_str(), entry.dtype.c_str());
  }
  bool overflow = false;
  for (const size_t count : entry.shape) overflow |= __builtin_mul_overflow(bytes, count, &bytes);
  if (overflow || bytes != entry.end - entry.begin) {
    return Status::Error(kInvalid, "%.*s occupies %zu bytes, which contradicts its shape",
                         kMaxShownNameBytes, name.c_str(), entry.end - entry.begin);
  }
  return Status();
}

uint32_t LittleEndian(const unsigned char* bytes, size_t count) {
  uint32_t value = 0;
  for (size_t i = 0; i < count; ++i) value |= static_cast<uint32_t>(bytes[i]) << (8 * i);
  return value;
}

float F32FromBits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

float F32FromF16(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1F;
  const uint32_t mantissa = half & 0x3FF;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in f32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  // Rebias from 15 to 127; infinity and NaN keep the largest exponent.
  const uint32_t rebiased = exponent == 0x1F ? 0xFF : exponent + 112;
  return F32FromBits(sign | (rebiased << 23) | (mantissa << 13));
}

}  // namespace

Status ReadFile(const std::string& path, std::string* content) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Status::Error(kInvalid, "cannot be opened");
  std::ostringstream bytes;
  bytes << file.rdbuf();
  // An empty file sets failbit on `bytes`, a folder badbit on `file`: neither has content.
  *content = bytes.str();
  if (file.bad() || content->empty()) return Status::Error(kInvalid, "is empty or cannot be read");
  return Status();
}

Status Safetensors::Read(const std::string& path, Safetensors* out) {
  std::string content;
  if (Status status = ReadFile(path, &content); !status.ok()) return status;
  return Parse(std::move(content), out);
}

Status Safetensors::Parse(std::string content, Safetensors* out) {
  if (content.size() < kLengthBytes) {
    return Status::Error(kInvalid, "has %zu bytes, too few for a header: is the file truncated?",
                         content.size());
  }
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(content.data());
  const uint64_t header_bytes = LittleEndian(bytes, 4) | uint64_t{LittleEndian(bytes + 4, 4)} << 32;
  if (header_bytes > content.size() - kLengthBytes) {
    return Status::Error(kInvalid,
                         "announces a header of %llu bytes, but only %zu follow: is the file "
                         "truncated?",
                         static_cast<unsigned long long>(header_bytes),
                         content.size() - kLengthBytes);
  }

  Safetensors result;
  result.data_begin_ = kLengthBytes + static_cast<size_t>(header_bytes);
  HeaderReader reader(
      std::string_view(content).substr(kLengthBytes, static_cast<size_t>(header_bytes)));
  const bool read = reader.ReadObject([&](const std::string& name) {
    if (name == "__metadata__") {
      return reader.ReadObject(
          [&](const std::string& key) { return reader.ReadString(&result.metadata_[key]); });
    }
    const auto [entry, inserted] = result.entries_.try_emplace(name);
    if (!inserted) return reader.Fail("each tensor only once");
    return ReadEntry(&reader, &entry->second);
  });
  if (read && !reader.AtEnd()) reader.Fail("the end");
  if (!reader.status().ok()) return reader.status();

  const size_t data_bytes = content.size() - result.data_begin_;
  std::vector<std::pair<size_t, size_t>> spans;
  for (const auto& [name, entry] : result.entries_) {
    if (Status status = ValidateEntry(name, entry, data_bytes); !status.ok()) return status;
    spans.emplace_back(entry.begin, entry.end);
  }
  std::sort(spans.begin(), spans.end());
  size_t covered = 0;
  for (const auto& [begin, end] : spans) {
    if (begin != covered) {
      return Status::Error(kInvalid, "tensors overlap or leave a gap at byte %zu of the data",
                           covered);
    }
    covered = end;
  }
  if (covered != data_bytes) {
    return Status::Error(kInvalid, "has %zu bytes after its last tensor", data_bytes - covered);
  }
  result.content_ = std::move(content);
  *out = std::move(result);
  return Status();
}

const std::string* Safetensors::Metadata(const std::string& key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : &found->second;
}

Status Safetensors::Get(const std::string& name, const std::vector<size_t>& shape,
                        std::vector<float>* values) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) return Status::Error(kInvalid, "has no tensor %s", name.c_str());
  const Entry& entry = found->second;
  if (entry.shape != shape) {
    return Status::Error(kInvalid, "%s has another shape than the model", name.c_str());
  }
  const size_t element = ElementBytes(entry.dtype);
  values->resize((entry.end - entry.begin) / element);
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(content_.data());
  bytes += data_begin_ + entry.begin;
  for (float& value : *values) {
    const uint32_t bits = LittleEndian(bytes, element);
    value = element == 2 ? F32FromF16(bits) : F32FromBits(bits);
    bytes += element;
  }
  return Status();
}

}  // namespace translate
