// The model files are complete and read as written; mistakes in them and on the command line are
// named.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "bench/model_file.h"
#include "bench/options.h"

namespace sightline {
namespace bench {
namespace {

using Catch::Matchers::ContainsSubstring;

std::vector<Case> Read(const std::string& text) {
  std::istringstream file(text);
  std::vector<Case> cases;
  std::string error;
  INFO(error);
  REQUIRE(ReadModels(file, "text", &cases, &error));
  return cases;
}

std::string ErrorOf(const std::string& text) {
  std::istringstream file(text);
  std::vector<Case> cases(1);
  std::string error;
  CHECK_FALSE(ReadModels(file, "text", &cases, &error));
  CHECK(cases.size() == 1);
  return error;
}

std::string RowOf(const Case& c) { return c.OpName() + "/" + c.model + "/" + c.Shape(); }

TEST_CASE("A model file reads as written", "[input]") {
  const std::vector<Case> cases = Read(
      "# comment\n"
      "model one  # another\n"
      "heads 8\n"
      "kv_heads 2\n"
      "head_dim 64\n"
      "v_head_dim 32\n"
      "scale 1\n"
      "\n"
      "self q=10,20 batch=3\n"
      "self_causal q=5 k=7 quick\n"
      "decode_cross k=1500 beams=1,5\n"
      "model two\n"
      "heads 4\n"
      "head_dim 16\n"
      "append k=9\n");
  REQUIRE(cases.size() == 6);
  CHECK(cases[0].model == "one");
  CHECK(cases[0].op == Op::kSelf);
  CHECK(cases[0].Shape() == "b3.h8.kv2.d64.q10.k10.dv32");
  CHECK(cases[0].scale == 1.0f);
  CHECK_FALSE(cases[0].has_features());
  CHECK_FALSE(cases[0].quick);
  CHECK(cases[1].Shape() == "b3.h8.kv2.d64.q20.k20.dv32");
  CHECK(cases[2].Shape() == "b1.h8.kv2.d64.q5.k7.dv32");
  CHECK(cases[2].quick);
  CHECK(cases[3].Shape() == "b1.h8.kv2.d64.q1.k1500.dv32");
  CHECK(cases[4].Shape() == "b1.h8.kv2.d64.q1.k1500.dv32.beams5");
  // Nothing is inherited from the model before.
  CHECK(cases[5].Shape() == "b1.h4.kv4.d16.q1.k9");
  CHECK(cases[5].scale == 0.0f);
}

TEST_CASE("Features read as written", "[input]") {
  const std::string head = "model m\nheads 8\nhead_dim 64\n";
  // Each word that a row takes, and what its name and its shape become.
  const struct {
    const char* row;
    const char* op;
    const char* shape;  // behind q and k
  } rows[] = {
      {"self q=100 window=20", "self_window", ".w20"},
      {"self_causal q=100 window=20 prefix=4", "self_causal_window_prefix", ".w20.p4"},
      {"self_causal q=100 prefix=4", "self_causal_prefix", ".p4"},
      {"self q=100 padding=5", "self_padding", ".pad5"},
      {"self q=100 mask", "self_mask", ""},
      {"self q=100 block_mask=16", "self_block_mask", ".block16"},
      {"self q=100 ragged", "self_ragged", ""},
      {"self_causal q=100 parts", "self_causal_parts", ""},
      {"self q=100 softcap=50", "self_softcap", ".cap50"},
      {"cross q=100 k=100 bias", "cross_bias", ""},
      {"self q=100 t5=32", "self_t5", ".buckets32"},
      {"self_causal q=100 alibi", "self_causal_alibi", ""},
      {"self q=100 sinks", "self_sinks", ""},
      {"self q=100 lse", "self_lse", ""},
      {"cross q=100 k=100 weights=6", "cross_weights", ".of6"},
      {"self q=100 mass", "self_mass", ""},
      {"self_causal q=100 prepared", "self_causal_prepared", ""},
      {"cross q=100 k=100 segments=4", "cross_segments", ".seg4"},
      // Names do not depend on the order in the file.
      {"self_causal mass softcap=3 window=20 q=100", "self_causal_window_softcap_mass",
       ".w20.cap3"},
  };
  std::set<std::string> words;
  for (const auto& row : rows) {
    CAPTURE(row.row);
    const std::vector<Case> cases = Read(head + row.row + "\n");
    REQUIRE(cases.size() == 1);
    CHECK(cases[0].has_features());
    CHECK(cases[0].OpName() == row.op);
    CHECK(cases[0].Shape() == std::string("b1.h8.kv8.d64.q100.k100") + row.shape);
    for (const FeatureWord& feature : kFeatureWords) {
      if (cases[0].features.*feature.value != 0) words.insert(feature.word);
    }
    // The row it is compared with.
    const bool is_ragged = cases[0].features.ragged != 0;
    CHECK(cases[0].Plain().OpName() == (is_ragged ? "self_parts" : Name(cases[0].op)));
    CHECK(cases[0].Plain().Shape() == "b1.h8.kv8.d64.q100.k100");
  }
  // Of ops without q.
  const struct {
    const char* row;
    const char* name;
  } others[] = {
      {"decode_self k=100 pages=256", "decode_self_pages/m/b1.h8.kv8.d64.q1.k100.page256"},
      {"decode_self k=100 batch=3 continuous", "decode_self_continuous/m/b3.h8.kv8.d64.q1.k100"},
      {"fork k=100 append", "fork_append/m/b1.h8.kv8.d64.q1.k100"},
      {"reorder k=100 batch=4", "reorder/m/b4.h8.kv8.d64.q1.k100"},
      {"map k=100 full", "map_full/m/b1.h8.kv8.d64.q1.k100"},
      {"append k=100 q=64", "append/m/b1.h8.kv8.d64.q64.k100"},
  };
  for (const auto& other : others) {
    const std::vector<Case> cases = Read(head + other.row + "\n");
    REQUIRE(cases.size() == 1);
    CHECK(RowOf(cases[0]) == other.name);
    for (const FeatureWord& feature : kFeatureWords) {
      if (cases[0].features.*feature.value != 0) words.insert(feature.word);
    }
  }
  CHECK(words.size() == std::size(kFeatureWords));

  const std::vector<Case> lists = Read(head + "decode_self window=64,128 k=512,1024 softcap=50\n");
  REQUIRE(lists.size() == 4);
  CHECK(lists[0].Shape() == "b1.h8.kv8.d64.q1.k512.w64.cap50");
  CHECK(lists[3].Shape() == "b1.h8.kv8.d64.q1.k1024.w128.cap50");
  // Nothing is left of the row before.
  CHECK_FALSE(Read(head + "self q=4 mask\nself q=4\n")[1].has_features());
}

TEST_CASE("Mistakes in a model file are named with their line", "[input]") {
  const std::string head = "model m\nheads 8\nhead_dim 64\n";
  CHECK_THAT(ErrorOf("heads 8\n"), ContainsSubstring("text:1: 'heads' before any 'model NAME'"));
  CHECK_THAT(ErrorOf("model M-1\n"), ContainsSubstring("'M-1': names are made of"));
  CHECK_THAT(ErrorOf("model m\nself q=1\n"), ContainsSubstring("text:2: self: say 'heads'"));
  CHECK_THAT(ErrorOf("model m\nheads 8 9\n"), ContainsSubstring("'heads' takes one value"));
  CHECK_THAT(ErrorOf("model m\nheads\n"), ContainsSubstring("'heads' takes one value"));
  CHECK_THAT(ErrorOf("model m\nheads -8\n"), ContainsSubstring("'-8' is no count from 1"));
  CHECK_THAT(ErrorOf("model m\nscale 0\n"), ContainsSubstring("'0' is no positive number"));
  CHECK_THAT(ErrorOf("model m\nhaeds 8\n"), ContainsSubstring("unknown word 'haeds'"));
  CHECK_THAT(ErrorOf(head + "kv_heads 3\nself q=1\n"),
             ContainsSubstring("3 does not divide heads 8"));
  CHECK_THAT(ErrorOf(head + "self\n"), ContainsSubstring("text:4: self needs q="));
  CHECK_THAT(ErrorOf(head + "append\n"), ContainsSubstring("append needs k="));
  CHECK_THAT(ErrorOf(head + "self q=\n"), ContainsSubstring("'q=': expected counts"));
  CHECK_THAT(ErrorOf(head + "self q=1,,2\n"), ContainsSubstring("'q=1,,2': expected counts"));
  CHECK_THAT(ErrorOf(head + "self q=1 beams=5\n"), ContainsSubstring("self has no 'beams=5'"));
  CHECK_THAT(ErrorOf(head + "decode_self k=1 q=5\n"),
             ContainsSubstring("decode_self has no 'q=5'"));
  CHECK_THAT(ErrorOf(head + "self q=99999999999999999999\n"), ContainsSubstring("expected counts"));
  CHECK_THAT(ErrorOf(head + "append k=1 k=2\n"), ContainsSubstring("append: 'k' twice"));
  CHECK_THAT(ErrorOf(head + "scale inf\n"), ContainsSubstring("'inf' is no positive number"));
  CHECK_THAT(ErrorOf(head + "self q=1048576 batch=1048576\n"), ContainsSubstring("is too large"));
}

TEST_CASE("Mistakes in features are named with their line", "[input]") {
  const std::string head = "model m\nheads 8\nhead_dim 64\n";
  CHECK_THAT(ErrorOf(head + "self q=4 widnow=2\n"),
             ContainsSubstring("text:4: self has no 'widnow=2'; it takes k=, batch=, q=, window=, "
                               "prefix=, padding=, mask, block_mask=, ragged, parts, softcap=, "
                               "bias, t5=, alibi, sinks, lse, weights=, mass, quick"));
  // With a number or without, not either way.
  CHECK_THAT(ErrorOf(head + "self q=4 mask=1\n"), ContainsSubstring("self has no 'mask=1'"));
  CHECK_THAT(ErrorOf(head + "self q=4 softcap\n"), ContainsSubstring("self has no 'softcap'"));
  CHECK_THAT(ErrorOf(head + "self q=4 mask mask\n"), ContainsSubstring("self: 'mask' twice"));
  CHECK_THAT(ErrorOf(head + "self q=4 window=0\n"),
             ContainsSubstring("'window=0': expected counts"));
  CHECK_THAT(ErrorOf(head + "self q=4 softcap=0.5\n"),
             ContainsSubstring("'softcap=0.5': expected counts"));
  // Stores know none, and windows are not for keys of another text.
  CHECK_THAT(ErrorOf(head + "append k=4 lse\n"),
             ContainsSubstring("append has no 'lse'; it takes k=, batch=, q=, quick"));
  CHECK_THAT(ErrorOf(head + "fork k=4 lse\n"),
             ContainsSubstring("fork has no 'lse'; it takes k=, batch=, append, quick"));
  CHECK_THAT(ErrorOf(head + "append k=4 q=5\n"),
             ContainsSubstring("q=5: tokens are taken from those that are there, 4"));
  // Where K and V are.
  CHECK_THAT(ErrorOf(head + "self q=4 segments=2\n"),
             ContainsSubstring("self has no 'segments=2'"));
  CHECK_THAT(ErrorOf(head + "cross q=4 prepared\n"), ContainsSubstring("cross has no 'prepared'"));
  CHECK_THAT(ErrorOf(head + "self q=4 prepared\n"), ContainsSubstring("self has no 'prepared'"));
  CHECK_THAT(ErrorOf(head + "self_causal q=4 batch=2 ragged prepared\n"),
             ContainsSubstring("'ragged' goes with"));
  CHECK_THAT(ErrorOf(head + "decode_cross k=4 pages=128\n"),
             ContainsSubstring("decode_cross has no 'pages=128'"));
  CHECK_THAT(ErrorOf(head + "cross q=4 segments=5\n"),
             ContainsSubstring("segments=5: there are 4 keys"));
  CHECK_THAT(ErrorOf(head + "decode_self k=4 pages=100\n"),
             ContainsSubstring("pages=100: a multiple of 128 tokens"));
  CHECK_THAT(ErrorOf(head + "decode_self k=4 continuous\n"),
             ContainsSubstring("'continuous' needs a batch"));
  CHECK_THAT(ErrorOf(head + "cross q=4 segments=2 lse\n"), ContainsSubstring("stand alone"));
  CHECK_THAT(ErrorOf(head + "cross q=4 window=2\n"), ContainsSubstring("cross has no 'window=2'"));
  CHECK_THAT(ErrorOf(head + "decode_self k=4 ragged\n"),
             ContainsSubstring("decode_self has no 'ragged'"));
  CHECK_THAT(ErrorOf(head + "self q=4 prefix=2\n"), ContainsSubstring("shows nothing new"));
  CHECK_THAT(ErrorOf(head + "self q=4 padding=50\n"),
             ContainsSubstring("padding=50: at most 49 percent"));
  for (const char* t5 : {"t5=2", "t5=31", "t5=130"}) {
    CHECK_THAT(ErrorOf(head + "self q=4 " + t5 + "\n"),
               ContainsSubstring(std::string("text:4: ") + t5 + ": an even number of buckets"));
  }
  CHECK_THAT(ErrorOf(head + "self q=4 weights=6,9\n"),
             ContainsSubstring("weights=9: there are 8 heads"));
  CHECK_THAT(ErrorOf(head + "self q=4 ragged parts\n"), ContainsSubstring("not both"));
  CHECK_THAT(ErrorOf(head + "self q=4 k=5 ragged\n"),
             ContainsSubstring("'ragged' has no k of its own"));
  for (const char* word : {"padding=5", "mask", "block_mask=2", "bias", "weights=2", "mass"}) {
    CHECK_THAT(ErrorOf(head + "self q=4 parts " + word + "\n"),
               ContainsSubstring("'parts' goes with window, softcap, t5, alibi, sinks and lse"));
  }
  CHECK_THAT(ErrorOf("model m\nheads 1\nhead_dim 1\nself q=1048576 batch=2048 ragged\n"),
             ContainsSubstring("no more than 1073741824 tokens"));
  CHECK_THAT(ErrorOf(head + "self q=1048576 mask\n"), ContainsSubstring("is too large"));
  // What models once said of themselves.
  CHECK_THAT(ErrorOf("model m\nbias relative\n"), ContainsSubstring("unknown word 'bias'"));
}

TEST_CASE("The models are there", "[input]") {
  std::vector<Case> cases;
  std::string error;
  REQUIRE(ReadModelFolder(SIGHTLINE_BENCH_MODELS, &cases, &error));

  std::set<std::string> models;
  std::map<Op, int> quick;
  std::map<Op, int> all;
  std::map<std::string, int> names;
  std::set<std::string> features;
  for (const Case& c : cases) {
    models.insert(c.model);
    ++all[c.op];
    for (const FeatureWord& feature : kFeatureWords) {
      if (c.features.*feature.value == 0) continue;
      features.insert(feature.word);
    }
    if (c.quick && !c.has_features()) ++quick[c.op];
    // A row of the same run is compared with those before it.
    if ((c.model == "features" || IsShare(c.op)) && c.has_features()) {
      INFO(RowOf(c) << " is compared with " << RowOf(c.Plain()));
      CHECK((c.features.parts != 0 || names.count(RowOf(c.Plain())) == 1));
    }
    ++names[RowOf(c)];
  }
  for (const char* name : {"transformer_base", "opus_mt",      "t5_base",      "flan_t5_base",
                           "bart_base",        "whisper_tiny", "whisper_base", "whisper_small",
                           "bert_base",        "minilm_l6",    "gpt2",         "llama32_1b",
                           "qwen25_05b",       "gemma3_1b",    "blip_base",    "llama32_11b_vision",
                           "fid_t5_base",      "sweep_d64",    "sweep_d128",   "gemma2_2b",
                           "features",         "kv",           "kv_continuous"}) {
    CAPTURE(name);
    CHECK(models.count(name) == 1);
  }
  CHECK(features.size() == std::size(kFeatureWords));
  for (const char* row :
       {"self_t5/t5_base/b1.h12.kv12.d64.q512.k512.buckets32",
        "self_causal_window/gemma3_1b_local/b1.h4.kv1.d256.q2048.k2048.w512",
        "self_causal_softcap/gemma2_2b/b1.h8.kv4.d256.q512.k512.cap50",
        "self_causal_window/features/b1.h1.kv1.d64.q8192.k8192.w256",
        "cross_weights/features/b1.h8.kv8.d64.q448.k1500.of6",
        "decode_cross_weights/features/b1.h8.kv8.d64.q1.k1500.of6",
        "self_ragged/features/b16.h8.kv8.d64.q512.k512", "append/kv/b1.h8.kv8.d64.q128.k4096",
        "fork_append/kv/b1.h8.kv8.d64.q1.k32768", "reorder_append/kv/b5.h8.kv8.d64.q1.k1500",
        "cross_segments/kv/b1.h8.kv8.d64.q512.k4096.seg16",
        "decode_cross_segments/kv/b1.h8.kv8.d64.q1.k16384.beams5.seg4",
        "decode_self_pages/kv/b1.h8.kv8.d64.q1.k32768.page1024",
        "decode_self_continuous/kv_continuous/b32.h14.kv2.d64.q1.k2048"}) {
    CAPTURE(row);
    CHECK(names.count(row) == 1);
  }
  CHECK(names.count("map/kv_file/b1.h8.kv8.d128.q1.k131072") == 1);
  CHECK(names.count("map_full/kv_file/b1.h8.kv8.d128.q1.k131072") == 1);
  for (const Op op : kAllOps) {
    CAPTURE(Name(op));
    CHECK(all[op] > 0);
    CHECK(quick[op] == 1);
  }
  for (const auto& [name, count] : names) {
    CAPTURE(name);
    CHECK(count == 1);
  }
  for (const char* sweep : {"sweep_d64", "sweep_d128"}) {
    for (const Op op : {Op::kSelf, Op::kSelfCausal}) {
      for (int64_t length = 64; length <= 32768; length *= 2) {
        const bool found = std::any_of(cases.begin(), cases.end(), [&](const Case& c) {
          return c.model == sweep && c.op == op && c.q_len == length && c.kv_len == length;
        });
        CAPTURE(sweep, Name(op), length);
        CHECK(found);
      }
    }
  }
  for (int64_t queries = 1; queries <= 16; ++queries) {  // a curve without gaps
    CHECK(names.count("cross/sweep_few_queries/b1.h8.kv8.d64.q" + std::to_string(queries) +
                      ".k1500") == 1);
  }
}

TEST_CASE("A row that is there twice is refused", "[input]") {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / "sightline_bench_twice";
  std::filesystem::create_directories(folder);
  for (const char* name : {"a.txt", "b.txt"}) {
    std::ofstream(folder / name) << "model m\nheads 1\nhead_dim 8\nself q=4\n";
  }
  std::vector<Case> cases;
  std::string error;
  CHECK_FALSE(ReadModelFolder(folder.string(), &cases, &error));
  CHECK_THAT(error, ContainsSubstring("self/m/b1.h1.kv1.d8.q4.k4 is there twice"));
  CHECK(cases.empty());
  std::filesystem::remove_all(folder);
}

TEST_CASE("A folder without models is refused", "[input]") {
  std::vector<Case> cases;
  std::string error;
  CHECK_FALSE(ReadModelFolder("no/such/folder", &cases, &error));
  CHECK_THAT(error, ContainsSubstring("no models in 'no/such/folder'"));
}

TEST_CASE("The command line", "[input]") {
  Options options;
  std::string error;
  const auto parse = [&](std::vector<const char*> args) {
    args.insert(args.begin(), "sightline_bench");
    error.clear();
    return ParseOptions(static_cast<int>(args.size()), args.data(), &options, &error);
  };
  REQUIRE(parse({"--quick", "--filter", "gpt2|llama", "--tier=avx2", "--threads", "2", "--json",
                 "out.json", "--peers", "--models=m"}));
  CHECK(options.quick);
  CHECK(options.peers);
  CHECK(options.filter == "gpt2|llama");
  CHECK(options.tier == "avx2");
  CHECK(options.threads == 2);
  CHECK(options.json == "out.json");
  CHECK(options.models == "m");

  CHECK_FALSE(parse({"--fast"}));
  CHECK_THAT(error, ContainsSubstring("unknown argument '--fast'"));
  CHECK_FALSE(parse({"--json"}));
  CHECK_THAT(error, ContainsSubstring("--json needs a value"));
  CHECK_FALSE(parse({"--json", "--list"}));
  CHECK_THAT(error, ContainsSubstring("--json needs a value"));
  CHECK_FALSE(parse({"--quick=1"}));
  CHECK_THAT(error, ContainsSubstring("--quick takes no value"));
  for (const char* threads : {"0", "-1", "two", "2x", "9999"}) {
    CHECK_FALSE(parse({"--threads", threads}));
    CHECK_THAT(error, ContainsSubstring("is no number from 1 to 1024"));
  }
  CHECK_FALSE(parse({"--filter", "("}));
  CHECK_THAT(error, ContainsSubstring("'(' is no regular expression"));
}

}  // namespace
}  // namespace bench
}  // namespace sightline
