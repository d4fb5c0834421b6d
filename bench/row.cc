#include "bench/row.h"

#include <stdio.h>

#include <memory>
#include <vector>

namespace sightline {
namespace bench {
namespace {

std::string Format(const char* format, double x) {
  char text[64];
  snprintf(text, sizeof(text), format, x);
  return text;
}

constexpr double kNearRoof = 0.95;

constexpr char kNoFeatures[] =
    "whatever the library has, this benchmark asks it for plain and causal attention only";

void AddRemark(const std::string& remark, std::string* label) {
  *label += (label->empty() ? "" : "; ") + remark;
}

}  // namespace

std::string RowName(const Contender& contender, const Case& c, const std::string& precision,
                    int threads) {
  const std::string peer = contender.name() == "sightline" ? "" : "peer:" + contender.name() + "/";
  return peer + c.OpName() + "/" + c.model + "/" + precision + "/" + c.Shape() +
         "/tier:" + contender.tier() + "/threads:" + std::to_string(threads);
}

double FractionOfRoof(const Row& row, Roofs* roofs) {
  if (IsShare(row.op)) return 0.0;
  if (!row.unit.empty()) return row.ops / roofs->Arithmetic(row.unit);
  return row.traffic_bytes / row.timing.seconds / roofs->ReadBandwidth(row.traffic_bytes);
}

bool MeasureRow(Contender* contender, const Problem& problem, const Offer& offer, Roofs* roofs,
                const Effort& effort, Row* row, std::string* why_not, const Case* plain) {
  const Case& c = problem.c;
  const int threads = roofs->threads();
  if ((c.has_features() || IsShare(c.op)) && !contender->knows_features()) {
    *why_not = kNoFeatures;
    return false;
  }
  const std::unique_ptr<Entry> entry = contender->Enter(problem, offer.precision, threads, why_not);
  if (entry == nullptr) return false;

  *row = Row();
  row->name = RowName(*contender, c, offer.precision, threads);
  row->op = c.op;
  row->op_name = c.OpName();
  row->kv_bytes = entry->kv_bytes();
  row->token_bytes = entry->token_bytes();
  row->traffic_bytes = IsShare(c.op) ? 0.0 : entry->traffic_bytes();
  if (IsAttention(c.op) && !IsDecode(c.op)) row->unit = roofs->UnitOf(offer.precision);

  // Before and after it is timed: what goes wrong on the way would be fast.
  const auto check = [&] {
    row->error = entry->error();
    if (!row->error.empty()) return false;
    const std::vector<float> out = entry->Output();
    row->rel_l2 = RelativeL2(problem, out);
    if (c.has_features()) {
      const double further = FurtherRelativeL2(problem, out, entry->Further());
      if (!(further <= row->rel_l2)) row->rel_l2 = further;  // NaN too
    }
    if (!(row->rel_l2 <= offer.max_rel_l2)) {
      row->error = Format("its relative L2 error is %.2g", row->rel_l2) +
                   Format(", more than the %.2g that its precision explains", offer.max_rel_l2);
    }
    return row->error.empty();
  };
  const bool has_beside = !entry->beside().empty();
  if (has_beside) {
    entry->RunBeside();
    if (!check()) return true;
  }
  entry->Run();
  if (!check()) return true;
  std::unique_ptr<Entry> plain_entry;
  if (plain != nullptr && !has_beside) {
    std::string plain_why_not;
    plain_entry = contender->Enter(Problem(*plain), offer.precision, threads, &plain_why_not);
  }
  if (plain_entry != nullptr) plain_entry->Run();
  const Timing timing = Measure(entry.get(), threads, effort, plain_entry.get());
  if (!check()) return true;

  row->timing = timing;
  row->ops = c.Operations() / timing.seconds;
  row->roof = FractionOfRoof(*row, roofs);
  if (has_beside || plain_entry != nullptr) {
    row->time_ratio = row->pair_ratio = timing.seconds / timing.beside_seconds;
    row->plain = has_beside ? entry->beside() : plain->OpName();
  }
  if (plain_entry != nullptr && plain->Operations() != c.Operations()) {
    row->pair_ratio *= plain->Operations() / c.Operations();
  }
  // So close to the roof it is worth a second look whether the roof was disturbed.
  if (row->roof > kNearRoof) {
    roofs->Remeasure();
    row->roof = FractionOfRoof(*row, roofs);
  }
  if (row->roof >= 1.0) AddRemark("above what was measured as the roof", &row->label);
  if (timing.spread > kMaxSpread) {
    AddRemark(Format("spread %.1f %%", 100 * timing.spread), &row->label);
  }
  return true;
}

}  // namespace bench
}  // namespace sightline
