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
constexpr double kMaxElements = 0x1p40;           // of a tensor, or of K and V
constexpr int64_t kMaxTokens = int64_t{1} << 30;  // of a ragged batch

// What has been read of the current model.
struct Model {
  std::string name;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  float scale = 0.0f;
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

bool HasQueries(Op op) { return IsAttention(op) && !IsDecode(op); }

// Whether an op has rows with a feature.
bool Knows(Op op, int64_t Features::* feature) {
  using F = Features;
  const bool is_self = op == Op::kSelf || op == Op::kSelfCausal;
  if (feature == &F::append) return op == Op::kFork || op == Op::kReorder;
  if (feature == &F::full) return op == Op::kMap;
  if (feature == &F::ragged || feature == &F::parts) return is_self;
  if (feature == &F::window || feature == &F::prefix) return is_self || op == Op::kDecodeSelf;
  if (feature == &F::prepared) return op == Op::kSelfCausal;  // for kSelf that would be kCross
  if (feature == &F::segments) return op == Op::kCross || op == Op::kDecodeCross;
  if (feature == &F::pages || feature == &F::continuous) return op == Op::kDecodeSelf;
  return IsAttention(op);
}

// What a row of an op may say beside `quick`: a word with counts, "k=5,6", or a word alone.
struct RowWord {
  std::string word;
  bool has_counts;
  int64_t* value;  // of the case that is being read
};

std::vector<RowWord> RowWords(Case* c) {
  std::vector<RowWord> words = {{"k", true, &c->kv_len}, {"batch", true, &c->batch}};
  // Decoding and storing have no q: one query per step, and one to look at what was stored.
  if (HasQueries(c->op) || c->op == Op::kAppend) words.push_back({"q", true, &c->q_len});
  if (c->op == Op::kDecodeCross) words.push_back({"beams", true, &c->beams});
  for (const FeatureWord& feature : kFeatureWords) {
    if (!Knows(c->op, feature.value)) continue;
    words.push_back({feature.word, feature.label != nullptr, &(c->features.*feature.value)});
  }
  return words;
}

// Empty, or why a row's features are not measured together, or not at all.
std::string WrongFeatures(const Case& c) {
  constexpr int64_t kMaxPadding = 49;  // percent, so that the emptiest sequence has a key
  constexpr int64_t kMaxBuckets = 128;
  constexpr int64_t kPageStep = 128;
  const Features& f = c.features;
  const auto text = [](const char* word, int64_t value) {
    return word + ("=" + std::to_string(value));
  };
  if (c.op == Op::kAppend && c.q_len > c.kv_len) {
    return text("q", c.q_len) + ": tokens are taken from those that are there, " +
           std::to_string(c.kv_len);
  }
  if (f.segments > c.kv_len) {
    return text("segments", f.segments) + ": there are " + std::to_string(c.kv_len) + " keys";
  }
  if (f.pages % kPageStep != 0) return text("pages", f.pages) + ": a multiple of 128 tokens";
  if (f.continuous != 0 && c.batch == 1) return "'continuous' needs a batch";
  int with = 0;
  for (const FeatureWord& feature : kFeatureWords) with += f.*feature.value != 0 ? 1 : 0;
  if (f.segments + f.pages + f.continuous != 0 && with > 1) {
    return "'segments', 'pages' and 'continuous' stand alone";
  }
  if (f.prefix != 0 && f.window == 0 && !c.causal()) {
    return "'prefix' without a causal mask or a window shows nothing new";
  }
  if (f.padding > kMaxPadding) {
    return "padding=" + std::to_string(f.padding) + ": at most 49 percent";
  }
  if (f.t5 != 0 && (f.t5 < 4 || f.t5 > kMaxBuckets || f.t5 % 2 != 0)) {
    return "t5=" + std::to_string(f.t5) + ": an even number of buckets from 4 to 128";
  }
  if (f.weights > c.heads) {
    return "weights=" + std::to_string(f.weights) + ": there are " + std::to_string(c.heads) +
           " heads";
  }
  if (f.ragged != 0 && f.parts != 0) return "'ragged' or 'parts', not both";
  if (c.ragged()) {
    const char* word = f.ragged != 0 ? "ragged" : "parts";
    if (c.kv_len != c.q_len) {
      return std::string("'") + word +
             "' has no k of its own: sequences have as many keys as queries";
    }
    if (c.batch * c.q_len > kMaxTokens) {
      return std::string("'") + word + "' has no more than " + std::to_string(kMaxTokens) +
             " tokens, q times batch";
    }
    if (f.prefix + f.padding + f.mask + f.block_mask + f.bias + f.weights + f.mass + f.prepared !=
        0) {
      return std::string("'") + word +
             "' goes with window, softcap, t5, alibi, sinks and lse alone";
    }
  }
  return "";
}

// Of the largest tensor.
double Elements(const Case& c) {
  const double heads =
      static_cast<double>(c.batch) * static_cast<double>(std::max(c.beams * c.heads, c.kv_heads));
  const double length = static_cast<double>(std::max(c.q_len, c.kv_len));
  const double inputs = heads * length * static_cast<double>(c.head_dim + c.v_head_dim);
  const Features& f = c.features;
  if (f.mask + f.bias + f.weights == 0) return inputs;
  return std::max(inputs, heads * static_cast<double>(c.q_len) * static_cast<double>(c.kv_len));
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
  struct Axis {
    int64_t* target;
    std::vector<int64_t> values;
  };

  std::string ReadProperty(const std::string& key, const std::string& value) {
    if (key == "model") {
      if (!IsName(value)) return "model '" + value + "': names are made of a-z, 0-9 and _";
      model_ = {};
      model_.name = value;
      return "";
    }
    if (model_.name.empty()) return "'" + key + "' before any 'model NAME'";
    if (key == "scale") {
      char* end = nullptr;
      const float number = strtof(value.c_str(), &end);
      if (*end != '\0' || !(number > 0.0f) || isinf(number))
        return key + " '" + value + "' is no positive number";
      model_.scale = number;
      return "";
    }
    const std::map<std::string, int64_t*> counts = {{"heads", &model_.heads},
                                                    {"kv_heads", &model_.kv_heads},
                                                    {"head_dim", &model_.head_dim},
                                                    {"v_head_dim", &model_.v_head_dim}};
    const auto count = counts.find(key);
    if (count == counts.end()) {
      return "unknown word '" + key +
             "'; known are model, heads, kv_heads, head_dim, v_head_dim, scale and the ops self, "
             "self_causal, cross, decode_self, decode_cross, prepare, append, fork, reorder, map";
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
    if (c.heads % c.kv_heads != 0) {
      return "kv_heads " + std::to_string(c.kv_heads) + " does not divide heads " +
             std::to_string(c.heads);
    }

    // Which values each word takes: a row for each combination, those of the last word next to each
    // other.
    std::vector<Axis> axes;
    std::set<std::string> given;
    const std::vector<RowWord> known = RowWords(&c);
    for (std::string text; words >> text;) {
      if (text == "quick") {
        c.quick = true;
        continue;
      }
      const size_t equals = text.find('=');
      const std::string key = text.substr(0, equals);
      const auto word = std::find_if(known.begin(), known.end(), [&](const RowWord& candidate) {
        return candidate.word == key && candidate.has_counts == (equals != std::string::npos);
      });
      if (word == known.end()) {
        std::string takes;
        for (const RowWord& one : known)
          takes.append(one.word).append(one.has_counts ? "=, " : ", ");
        return std::string(Name(op)) + " has no '" + text + "'; it takes " + takes + "quick";
      }
      if (!given.insert(key).second) return std::string(Name(op)) + ": '" + key + "' twice";
      axes.push_back({word->value, {1}});
      if (!word->has_counts) continue;
      axes.back().values = ParseCounts(text.substr(equals + 1));
      if (axes.back().values.empty()) {
        return "'" + text + "': expected counts from 1 to 1048576, separated by commas";
      }
    }
    const std::string needed = HasQueries(op) ? "q" : "k";
    if (given.count(needed) == 0) return std::string(Name(op)) + " needs " + needed + "=";
    return AddCases(axes, 0, &c);
  }

  // Adds a case for each combination of what axes from `begin` on say of *c.
  std::string AddCases(const std::vector<Axis>& axes, size_t begin, Case* c) {
    if (begin < axes.size()) {
      for (const int64_t value : axes[begin].values) {
        *axes[begin].target = value;
        std::string wrong = AddCases(axes, begin + 1, c);
        if (!wrong.empty()) return wrong;
      }
      return "";
    }
    Case added = *c;
    if (added.kv_len == 0) added.kv_len = added.q_len;
    std::string wrong = WrongFeatures(added);
    if (!wrong.empty()) return wrong;
    if (Elements(added) > kMaxElements) {
      return added.Shape() + " is too large: more than 2^40 elements";
    }
    cases_->push_back(added);
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
    const std::string name = c.OpName() + "/" + c.model + "/" + c.Shape();
    if (names.insert(name).second) continue;
    *error = "in '" + folder + "' the row " + name + " is there twice";
    return false;
  }
  *cases = std::move(read);
  return true;
}

}  // namespace bench
}  // namespace sightline
