// Words to tokens and back. There is no token for unknown words: a sentence with one of them is
// refused and the word named, instead of being translated by guesswork.
//
//   std::vector<Token> tokens;
//   Status status = Tokenize(english, "Hello world!", &tokens);  // hello world ! <eos>
//   std::string text = Detokenize(french, {12, 40});             // "l'homme": no space after l'
#ifndef EXAMPLES_TRANSLATE_VOCABULARY_H_
#define EXAMPLES_TRANSLATE_VOCABULARY_H_

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "sightline/status.h"

namespace translate {

using sightline::Status;
using sightline::StatusCode;

using Token = uint32_t;

// The first three tokens of every vocabulary; the words follow.
constexpr Token kPad = 0;
constexpr Token kBos = 1;
constexpr Token kEos = 2;
constexpr Token kFirstWord = 3;

class Vocabulary {
 public:
  // A file of one token per line. On error *out is unchanged.
  static Status Read(const std::string& path, Vocabulary* out);
  static Status Parse(std::string_view text, Vocabulary* out);

  size_t size() const { return words_.size(); }
  const std::string& word(Token token) const { return words_[token]; }  // token < size()
  // False if `word` is unknown, which <pad>, <bos> and <eos> are to whoever types them.
  bool Find(std::string_view word, Token* token) const;

 private:
  std::vector<std::string> words_;
  std::unordered_map<std::string, Token> tokens_;
};

// Lower-cased words and punctuation marks, in the order of the text.
std::vector<std::string> SplitWords(std::string_view text);

// The words' tokens and <eos>. kInvalidArgument: no words, or unknown ones, which are named.
Status Tokenize(const Vocabulary& vocabulary, std::string_view text, std::vector<Token>* tokens);

// One space after each token, but none after an apostrophe.
std::string Detokenize(const Vocabulary& vocabulary, const std::vector<Token>& tokens);

}  // namespace translate

#endif  // EXAMPLES_TRANSLATE_VOCABULARY_H_
