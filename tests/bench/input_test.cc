// The model files are complete and read as written; mistakes in them and on the command line are
// named.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <fstream>
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

TEST_CASE("A model file reads as written", "[input]") {
  const std::vector<Case> cases = Read(
      "# comment\n"
      "model one  # another\n"
      "heads 8\n"
      "kv_heads 2\n"
      "head_dim 64\n"
      "v_head_dim 32\n"
      "scale 1\n"
      "bias relative\n"
      "\n"
      "self q=10,20 batch=3\n"
      "self_causal q=5 k=7 window=4 quick\n"
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
  CHECK(cases[0].left_out == "relative bias");
  CHECK_FALSE(cases[0].quick);
  CHECK(cases[1].Shape() == "b3.h8.kv2.d64.q20.k20.dv32");
  CHECK(cases[2].Shape() == "b1.h8.kv2.d64.q5.k7.dv32");
  CHECK(cases[2].left_out == "relative bias and sliding window");
  CHECK(cases[2].quick);
  CHECK(cases[3].Shape() == "b1.h8.kv2.d64.q1.k1500.dv32");
  CHECK(cases[4].Shape() == "b1.h8.kv2.d64.q1.k1500.dv32.beams5");
  // Nothing is inherited from the model before.
  CHECK(cases[5].Shape() == "b1.h4.kv4.d16.q1.k9");
  CHECK(cases[5].scale == 0.0f);
  CHECK(cases[5].left_out.empty());
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

TEST_CASE("The models are there", "[input]") {
  std::vector<Case> cases;
  std::string error;
  REQUIRE(ReadModelFolder(SIGHTLINE_BENCH_MODELS, &cases, &error));

  std::set<std::string> models;
  std::map<Op, int> quick;
  std::map<Op, int> all;
  std::map<std::string, int> names;
  for (const Case& c : cases) {
    models.insert(c.model);
    ++all[c.op];
    if (c.quick) ++quick[c.op];
    ++names[std::string(Name(c.op)) + "/" + c.model + "/" + c.Shape()];
  }
  for (const char* name :
       {"transformer_base", "opus_mt", "t5_base", "flan_t5_base", "bart_base", "whisper_tiny",
        "whisper_base", "whisper_small", "bert_base", "minilm_l6", "gpt2", "llama32_1b",
        "qwen25_05b", "gemma3_1b", "blip_base", "llama32_11b_vision", "fid_t5_base", "sweep_d64",
        "sweep_d128"}) {
    CAPTURE(name);
    CHECK(models.count(name) == 1);
  }
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
