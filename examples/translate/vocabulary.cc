#include "vocabulary.h"

#include <utility>

#include "safetensors.h"

namespace translate {
namespace {

constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
constexpr const char* kSpecialWords[] = {"<pad>", "<bos>", "<eos>"};

// How much of unknown words goes into a message.
constexpr size_t kMaxNamedWords = 4;
constexpr size_t kMaxNamedBytes = 32;

bool IsOneOf(std::string_view set, char c) { return set.find(c) != std::string_view::npos; }
bool IsSpace(char c) { return IsOneOf(" \t\r\n\f\v", c); }
bool IsMark(char c) { return IsOneOf(".,!?", c); }

// `word` in quotes, short, without anything that a terminal could take for a command, and cut
// between characters.
std::string Quoted(const std::string& word) {
  std::string shown;
  for (const char c : word) {
    const unsigned char byte = static_cast<unsigned char>(c);
    const bool continues = (byte & 0xC0) == 0x80;
    if (shown.size() >= kMaxNamedBytes && !continues) {
      shown += "…";
      break;
    }
    shown += byte < 0x20 || byte == 0x7F ? '?' : c;
    if (shown.size() >= 2 * kMaxNamedBytes) break;  // not UTF-8 at all
  }
  return '"' + shown + '"';
}

}  // namespace

Status Vocabulary::Read(const std::string& path, Vocabulary* out) {
  std::string text;
  if (Status status = ReadFile(path, &text); !status.ok()) return status;
  return Parse(text, out);
}

Status Vocabulary::Parse(std::string_view text, Vocabulary* out) {
  Vocabulary result;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) {
      return Status::Error(kInvalid, "does not end with a line break: is the file truncated?");
    }
    std::string word(text.substr(0, end));
    const Token token = static_cast<Token>(result.words_.size());
    if (token < kFirstWord && word != kSpecialWords[token]) {
      return Status::Error(kInvalid, "line %u must be %s", token + 1, kSpecialWords[token]);
    }
    if (word.empty() || !result.tokens_.emplace(word, token).second) {
      return Status::Error(kInvalid, "line %u is empty or repeats an earlier one", token + 1);
    }
    result.words_.push_back(std::move(word));
    text.remove_prefix(end + 1);
  }
  if (result.size() <= kFirstWord) return Status::Error(kInvalid, "has no words");
  *out = std::move(result);
  return Status();
}

bool Vocabulary::Find(std::string_view word, Token* token) const {
  const auto found = tokens_.find(std::string(word));
  if (found == tokens_.end() || found->second < kFirstWord) return false;
  *token = found->second;
  return true;
}

std::vector<std::string> SplitWords(std::string_view text) {
  std::vector<std::string> words;
  bool inside_word = false;
  for (const char c : text) {
    if (IsSpace(c)) {
      inside_word = false;
      continue;
    }
    if (!inside_word || IsMark(c)) words.emplace_back();
    words.back() += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    inside_word = !IsMark(c);
  }
  return words;
}

Status Tokenize(const Vocabulary& vocabulary, std::string_view text, std::vector<Token>* tokens) {
  const std::vector<std::string> words = SplitWords(text);
  if (words.empty()) return Status::Error(kInvalid, "the sentence is empty");
  tokens->clear();
  std::string unknown;
  size_t num_unknown = 0;
  for (const std::string& word : words) {
    Token token = kEos;
    if (vocabulary.Find(word, &token)) {
      tokens->push_back(token);
    } else if (++num_unknown <= kMaxNamedWords) {
      unknown += (num_unknown > 1 ? ", " : "") + Quoted(word);
    } else if (num_unknown == kMaxNamedWords + 1) {
      unknown += " and more";
    }
  }
  if (num_unknown > 0) {
    return Status::Error(kInvalid, "unknown word%s: %s", num_unknown > 1 ? "s" : "",
                         unknown.c_str());
  }
  tokens->push_back(kEos);
  return Status();
}

std::string Detokenize(const Vocabulary& vocabulary, const std::vector<Token>& tokens) {
  std::string text;
  for (const Token token : tokens) {
    if (!text.empty() && text.back() != '\'') text += ' ';
    text += vocabulary.word(token);
  }
  return text;
}

}  // namespace translate
