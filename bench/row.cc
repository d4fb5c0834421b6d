#include "bench/row.h"

#include <stdio.h>

#include <memory>

namespace sightline {
namespace bench {
namespace {

std::string Format(const char* format, double x) {
  char text[64];
  snprintf(text, sizeof(text), format, x);
  return text;
}

constexpr double kNearRoof = 0.95;

void AddRemark(const std::string& remark, std::string* label) {
  *label += (label->empty() ? "" : "; ") + remark;
}

}  // namespace

std::string RowName(const Contender& contender, const Case& c, const std::string& precision,
                    int threads) {
  const std::string peer = contender.name() == "sightline" ? "" : "peer:" + contender.name() + "/";
  return peer + Name(c.op) + "/" + c.model + "/" + precision + "/" + c.Shape() +
         "/tier:" + contender.tier() + "/threads:" + std::to_string(threads);
}

double FractionOfRoof(const Row& row, Roofs* roofs) {
  if (!row.unit.empty()) return row.ops / roofs->Arithmetic(row.unit);
  return row.traffic_bytes / row.timing.seconds / roofs->ReadBandwidth(row.traffic_bytes);
}

bool MeasureRow(Contender* contender, const Problem& problem, const Offer& offer, Roofs* roofs,
                const Effort& effort, Row* row, std::string* why_not) {
  const Case& c = problem.c;
  const int threads = roofs->threads();
  const std::unique_ptr<Entry> entry = contender->Enter(problem, offer.precision, threads, why_not);
  if (entry == nullptr) return false;

  *row = Row();
  row->name = RowName(*contender, c, offer.precision, threads);
  row->op = c.op;
  row->kv_bytes = entry->kv_bytes();
  row->traffic_bytes = entry->traffic_bytes();
  if (!IsDecode(c.op) && !IsStore(c.op)) row->unit = roofs->UnitOf(offer.precision);
  if (!c.left_out.empty()) AddRemark("without its " + c.left_out, &row->label);

  // Before and after it is timed: what goes wrong on the way would be fast.
  const auto check = [&] {
    row->error = entry->error();
    if (!row->error.empty()) return false;
    row->rel_l2 = RelativeL2(problem, entry->Output());
    if (!(row->rel_l2 <= offer.max_rel_l2)) {
      row->error = Format("its relative L2 error is %.2g", row->rel_l2) +
                   Format(", more than the %.2g that its precision explains", offer.max_rel_l2);
    }
    return row->error.empty();
  };
  entry->Run();
  if (!check()) return true;
  const Timing timing = Measure(entry.get(), threads, effort);
  if (!check()) return true;

  row->timing = timing;
  row->ops = c.Operations() / timing.seconds;
  row->roof = FractionOfRoof(*row, roofs);
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
