// Elements. All text comes in as text nodes, so a name from a file can never become markup.

// el('p.note', { title: 'x' }, 'text', child, null): attributes that are null or false are left
// out.
function el(selector, attributes = {}, ...children) {
  const [tag, ...classes] = selector.split('.');
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(' ');
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(
    ...children
      .flat(Infinity)
      .filter((child) => child !== null && child !== undefined && child !== false),
  );
  return node;
}

function section(id, title, intro, ...content) {
  return el(
    'section',
    { id, 'aria-labelledby': `${id}-title` },
    el('h2', { id: `${id}-title` }, title),
    [intro].flat().map((text) => el('p.intro', {}, text)),
    ...content,
  );
}

// columns: [{ title, unit?, hint?, text?: true, cell(row) -> node, string or { node, sort } }]; the
// first is the row's heading. A tall table scrolls below its headings; many columns stand closer.
function table(caption, columns, rows, { tall = false } = {}) {
  const head = columns.map((column) =>
    el(
      'th',
      { scope: 'col', tabindex: 0, title: column.hint, class: column.text ? 'text' : null },
      column.title,
      column.unit && el('span.unit', {}, `, ${column.unit}`),
    ),
  );
  const body = rows.map((row) =>
    el(
      'tr',
      {},
      columns.map((column, i) => {
        const made = column.cell(row);
        const cell = made && Object.hasOwn(made, 'sort') ? made : { node: made, sort: null };
        const attributes = {
          'data-sort': cell.sort ?? (column.text ? null : ''),
          class: column.text ? 'text' : null,
        };
        return i === 0
          ? el('th', { scope: 'row', ...attributes }, cell.node)
          : el('td', attributes, cell.node ?? el('span.none', {}, '–'));
      }),
    ),
  );
  const label = caption instanceof Node ? caption.textContent : caption;
  return el(
    `div.table-box${tall ? '.tall' : ''}${columns.length > 11 ? '.dense' : ''}`,
    { tabindex: 0, role: 'region', 'aria-label': label },
    el(
      'table.sortable.asc.n-last',
      {},
      el('caption', {}, el('span', {}, caption)),
      el('thead', {}, el('tr', {}, head)),
      el('tbody', {}, body),
    ),
  );
}

// A cell that shows a formatted number and sorts by the number itself.
function numeric(value, format) {
  return value === null || value === undefined
    ? { node: null, sort: '' }
    : { node: format(value), sort: value };
}
