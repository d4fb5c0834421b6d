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
  if (!c.left_out.empty()) AddRemark("without its " + c.left_out, &row->label);

  entry->Run();
  row->rel_l2 = RelativeL2(problem, entry->Output());
  row->error = entry->error();
  if (row->error.empty() && !(row->rel_l2 <= offer.max_rel_l2)) {
    row->error = Format("not timed: its relative L2 error is %.2g", row->rel_l2) +
                 Format(", more than the %.2g allowed", offer.max_rel_l2);
  }
  if (!row->error.empty()) return true;

  row->timing = Measure(entry.get(), threads, effort);
  row->error = entry->error();
  row->ops = c.Operations() / row->timing.seconds;
  if (IsDecode(c.op) || IsStore(c.op)) {
    const double bytes = entry->traffic_bytes();
    row->roof = bytes / row->timing.seconds / roofs->ReadBandwidth(bytes);
  } else {
    row->roof = row->ops / roofs->Arithmetic(roofs->UnitOf(offer.precision));
  }
  if (row->timing.spread > kMaxSpread) {
    AddRemark(Format("spread %.1f %%", 100 * row->timing.spread), &row->label);
  }
  return true;
}

}  // namespace bench
}  // namespace sightline
