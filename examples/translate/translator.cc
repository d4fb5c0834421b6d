#include "translator.h"

#include <algorithm>
#include <utility>

#include "beam_search.h"

namespace translate {

// A sentence that is being decoded.
struct Translator::Job {
  Job(const Decoding& decoding, size_t max_len, Result* to)
      : result(to), search(decoding.beams, max_len) {}

  Result* result;
  Source source;
  BeamSearch search;
  std::vector<History> histories;  // of the live hypotheses
};

Status Translator::Create(const Model& model, sightline::Precision precision,
                          Translator* translator, const Decoding& decoding) {
  if (decoding.beams == 0 || decoding.batch == 0) {
    return Status::Error(StatusCode::kInvalidArgument, "%s is 0, must be at least 1",
                         decoding.beams == 0 ? "beams" : "batch");
  }
  Translator result;
  result.model_ = &model;
  result.precision_ = precision;
  result.decoding_ = decoding;
  Status status = Encoder::Create(model, precision, &result.encoder_);
  if (status.ok()) {
    status = Decoder::Create(model, precision, decoding.batch, decoding.beams, &result.decoder_);
  }
  if (status.ok()) *translator = std::move(result);
  return status;
}

Status Translator::Translate(std::string_view english, Translation* translation) {
  std::vector<Result> results;
  TranslateAll({std::string(english)}, &results);
  if (results[0].status.ok()) *translation = std::move(results[0].translation);
  return results[0].status;
}

void Translator::TranslateAll(const std::vector<std::string>& english,
                              std::vector<Result>* results) {
  results->assign(english.size(), Result());
  std::vector<Job> jobs;
  for (size_t next = 0;;) {
    for (; jobs.size() < decoding_.batch && next < english.size(); ++next) {
      Result& result = (*results)[next];
      Job job(decoding_, model_->config.max_len, &result);
      result.status = Start(english[next], &job);
      if (result.status.ok()) jobs.push_back(std::move(job));
    }
    if (jobs.empty()) return;
    if (const Status status = Step(&jobs); !status.ok()) {
      for (Job& job : jobs) job.result->status = status;
      jobs.clear();
    }
    for (const Job& job : jobs) {
      if (job.search.done()) Finish(job);
    }
    const auto is_done = [](const Job& job) { return job.search.done(); };
    jobs.erase(std::remove_if(jobs.begin(), jobs.end(), is_done), jobs.end());
  }
}

Status Translator::Start(std::string_view english, Job* job) {
  std::vector<Token>& source = job->result->translation.source;
  Status status = Tokenize(model_->english, english, &source);
  if (!status.ok()) return status;
  const size_t max_len = model_->config.max_len;
  if (source.size() > max_len) {
    return Status::Error(StatusCode::kCapacityExceeded,
                         "the sentence has %zu words and marks, the model takes at most %zu",
                         source.size() - 1, max_len - 1);
  }
  job->histories.resize(1);
  status = encoder_.Encode(source, &memory_);
  if (status.ok()) status = decoder_.Prepare(memory_, source.size(), &job->source);
  if (status.ok()) status = decoder_.Begin(&job->histories[0]);
  return status;
}

Status Translator::Step(std::vector<Job>* jobs) {
  std::vector<Decoder::Row> rows;
  for (Job& job : *jobs) {
    for (size_t i = 0; i < job.search.num_live(); ++i) {
      rows.push_back({&job.source, &job.histories[i], job.search.last(i)});
    }
  }
  Status status = decoder_.Step(rows, &logits_);
  if (!status.ok()) return status;

  const size_t vocabulary = model_->config.target_vocabulary;
  const float* logits = logits_.data();
  std::vector<size_t> parents;
  for (Job& job : *jobs) {
    const size_t num_rows = job.search.num_live();
    job.search.Advance(logits, vocabulary, &parents);
    logits += num_rows * vocabulary;
    ++job.result->translation.decode_steps;
    status = Reorder(parents, &job.histories);
    if (!status.ok()) return status;
  }
  return status;
}

void Translator::Finish(const Job& job) const {
  const Hypothesis& best = job.search.best();
  Translation& translation = job.result->translation;
  translation.target = best.tokens;
  translation.complete = best.complete;
  translation.score = best.score();
  translation.text = Detokenize(model_->french, best.tokens);
  translation.cross_memory_bytes = job.source.bytes;
}

Status Translator::Trace(const Translation& translation, DecoderTrace* trace) {
  const size_t num_steps = std::min(translation.target.size() + 1, model_->config.max_len);
  Source source;
  History history;
  Status status = encoder_.Encode(translation.source, &memory_);
  if (status.ok()) status = decoder_.Prepare(memory_, translation.source.size(), &source, trace);
  if (status.ok()) status = decoder_.Begin(&history);
  for (size_t i = 0; i < num_steps && status.ok(); ++i) {
    const Token token = i == 0 ? kBos : translation.target[i - 1];
    status = decoder_.Step({{&source, &history, token}}, &logits_, trace);
  }
  return status;
}

}  // namespace translate
