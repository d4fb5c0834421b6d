#include "bench/model_file.h"

#include <math.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

namespace sightline {
namespace bench {
namespace {

// Beyond any model.
constexpr int64_t kMaxCount = int64_t{1} << 20;
constexpr double kMaxElements = 0x1p40;  // of Q or of K and V

// What has been read of the current model.
struct Model {
  std::string name;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  float scale = 0.0f;
  std::string left_out;
};

bool IsName(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
}

// A list of counts: "64,128". Empty if it is not one.
std::vector<int64_t> ParseCounts(const std::string& text) {
  std::vector<int64_t> counts;
  std::istringstream words(text + ",");
  for (std::string word; std::getline(words, word, ',');) {
    char* end = nullptr;
    const long long count = strtoll(word.c_str(), &end, 10);
    if (word.empty() || *end != '\0' || count < 1 || count > kMaxCount) return {};
    counts.push_back(count);
  }
  return counts;
}

void LeaveOut(const std::string& what, std::string* left_out) {
  *left_out += (left_out->empty() ? "" : " and ") + what;
}

class Reader {
 public:
  explicit Reader(std::vector<Case>* cases) : cases_(cases) {}

  // Empty, or what is wrong with the line.
  std::string Read(const std::string& line) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string key;
    if (!(words >> key)) return "";
    if (Op op; Parse(key, &op)) return ReadRow(op, words);
    std::string value;
    std::string rest;
    if (!(words >> value) || words >> rest) return "'" + key + "' takes one value";
    return ReadProperty(key, value);
  }

 private:
  std::string ReadProperty(const std::string& key, const std::string& value) {
    if (key == "model") {
      if (!IsName(value)) return "model '" + value + "': names are made of a-z, 0-9 and _";
      model_ = {};
      model_.name = value;
      return "";
    }
    if (model_.name.empty()) return "'" + key + "' before any 'model NAME'";
    if (key == "scale" || key == "softcap") {
      char* end = nullptr;
      const float number = strtof(value.c_str(), &end);
      if (*end != '\0' || !(number > 0.0f) || isinf(number))
        return key + " '" + value + "' is no positive number";
      if (key == "scale") model_.scale = number;
      if (key == "softcap") LeaveOut("softcap", &model_.left_out);
      return "";
    }
    if (key == "bias") {
      if (!IsName(value)) return "bias '" + value + "': names are made of a-z, 0-9 and _";
      LeaveOut(value + " bias", &model_.left_out);
      return "";
    }
    const std::map<std::string, int64_t*> counts = {{"heads", &model_.heads},
                                                    {"kv_heads", &model_.kv_heads},
                                                    {"head_dim", &model_.head_dim},
                                                    {"v_head_dim", &model_.v_head_dim}};
    const auto count = counts.find(key);
    if (count == counts.end()) {
      return "unknown word '" + key +
             "'; known are model, heads, kv_heads, head_dim, v_head_dim, scale, softcap, bias and "
             "the ops self, self_causal, cross, decode_self, decode_cross, prepare, append";
    }
    const std::vector<int64_t> values = ParseCounts(value);
    if (values.size() != 1) return key + " '" + value + "' is no count from 1 to 1048576";
    *count->second = values[0];
    return "";
  }

  std::string ReadRow(Op op, std::istream& words) {
    if (model_.heads == 0 || model_.head_dim == 0) {
      return std::string(Name(op)) + ": say 'heads' and 'head_dim' first";
    }
    Case c;
    c.op = op;
    c.model = model_.name;
    c.heads = model_.heads;
    c.kv_heads = model_.kv_heads != 0 ? model_.kv_heads : model_.heads;
    c.head_dim = model_.head_dim;
    c.v_head_dim = model_.v_head_dim != 0 ? model_.v_head_dim : model_.head_dim;
    c.scale = model_.scale;
    c.left_out = model_.left_out;
    if (c.heads % c.kv_heads != 0) {
      return "kv_heads " + std::to_string(c.kv_heads) + " does not divide heads " +
             std::to_string(c.heads);
    }

    // Decoding and storing have no q: one query per step, and one to look at what was stored.
    const bool has_q = !IsDecode(op) && !IsStore(op);
    std::map<std::string, std::vector<int64_t>> lists;
    for (std::string word; words >> word;) {
      if (word == "quick") {
        c.quick = true;
        continue;
      }
      const size_t equals = word.find('=');
      const std::string key = word.substr(0, equals);
      const bool known = key == "k" || key == "batch" || key == "window" || (key == "q" && has_q) ||
                         (key == "beams" && op == Op::kDecodeCross);
      if (equals == std::string::npos || !known) {
        return std::string(Name(op)) + " has no '" + word + "'; it takes k, batch, window" +
               (has_q ? ", q" : "") + (op == Op::kDecodeCross ? ", beams" : "") + " and quick";
      }
      if (lists.count(key) != 0) return std::string(Name(op)) + ": '" + key + "' twice";
      lists[key] = ParseCounts(word.substr(equals + 1));
      if (lists[key].empty()) {
        return "'" + word + "': expected counts from 1 to 1048576, separated by commas";
      }
    }
    if (lists.count("window") != 0) LeaveOut("sliding window", &c.left_out);
    if (has_q && lists["q"].empty()) return std::string(Name(op)) + " needs q=";
    if (!has_q && lists["k"].empty()) return std::string(Name(op)) + " needs k=";

    const auto or_one = [&lists](const char* key) {
      const std::vector<int64_t>& list = lists[key];
      return list.empty() ? std::vector<int64_t>{1} : list;
    };
    for (const int64_t batch : or_one("batch")) {
      for (const int64_t beams : or_one("beams")) {
        for (const int64_t q : or_one("q")) {
          for (const int64_t k : lists["k"].empty() ? std::vector<int64_t>{q} : lists["k"]) {
            c.batch = batch;
            c.beams = beams;
            c.q_len = q;
            c.kv_len = k;
            const double heads = static_cast<double>(batch * std::max(beams * c.heads, c.kv_heads));
            const double length = static_cast<double>(std::max(q, k));
            if (heads * length * static_cast<double>(c.head_dim + c.v_head_dim) > kMaxElements) {
              return c.Shape() + " is too large: more than 2^40 elements";
            }
            cases_->push_back(c);
          }
        }
      }
    }
    return "";
  }

  std::vector<Case>* cases_;
  Model model_;
};

}  // namespace

bool ReadModels(std::istream& file, const std::string& name, std::vector<Case>* cases,
                std::string* error) {
  std::vector<Case> read;
  Reader reader(&read);
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const std::string wrong = reader.Read(line);
    if (wrong.empty()) continue;
    *error = name + ":" + std::to_string(number) + ": " + wrong;
    return false;
  }
  cases->insert(cases->end(), read.begin(), read.end());
  return true;
}

bool ReadModelFolder(const std::string& folder, std::vector<Case>* cases, std::string* error) {
  namespace fs = std::filesystem;
  std::error_code code;
  std::vector<fs::path> paths;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, code)) {
    if (entry.path().extension() == ".txt") paths.push_back(entry.path());
  }
  if (code || paths.empty()) {
    *error = "no models in '" + folder + "'" + (code ? ": " + code.message() : "");
    return false;
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Case> read;
  for (const fs::path& path : paths) {
    std::ifstream file(path);
    if (!file) {
      *error = "cannot read " + path.string();
      return false;
    }
    if (!ReadModels(file, path.filename().string(), &read, error)) return false;
  }
  std::set<std::string> names;
  for (const Case& c : read) {
    const std::string name = std::string(Name(c.op)) + "/" + c.model + "/" + c.Shape();
    if (names.insert(name).second) continue;
    *error = "in '" + folder + "' the row " + name + " is there twice";
    return false;
  }
  *cases = std::move(read);
  return true;
}

}  // namespace bench
}  // namespace sightline
