"""A hand-written synchronous grammar: each rule builds an English sentence and its translation.

The English side determines the French side.  Where English says less than French, a fixed
convention decides:
  * "you" is « vous » addressed to one man: « vous êtes fatigué », imperatives in -ez;
  * "i", "we" and "they" agree in the masculine, unless "they" has an antecedent in the sentence;
  * "it" and "they" after "but" or "and" take the gender of the subject of the first clause;
  * the English simple past is the passé composé of a verb, the imperfect of "to be";
  * the English progressive is the French present.

A sentence is two lists of tokens.  Run this file to print samples of every construction.
"""

import random
import sys
from dataclasses import dataclass

from lexicon import (
    ADDRESSEES, ADJECTIVES, ALLER, AVOIR, ETRE, ETRE_IMPERFECT, EXCLUSIVE_ADJECTIVES, GIVING,
    GREETINGS, IL, ILS, INTRANSITIVE, JE, LIKING, MASS_KINDS, MODALS, MOTION, NAMES, NOUNS, NOUS,
    NUMBERS, OPINION, OUTDOORS, POSSESSIVES, STATES, TIMES, TRANSITIVE, UNGRADED_ADJECTIVES, VOUS,
    WEATHER, french_plural, starts_with_vowel_sound)

MAX_TOKENS = 30  # longest sentence kept, on either side

ANIMATE = ("person", "animal")
SUBJECT_KINDS = {"human": ("person",), "animate": ANIMATE, "moving": ("person", "vehicle")}
PORTABLE = ("text", "clothing", "object")
PLACES = ("place", "area")
THINGS = ("text", "clothing", "object", "furniture", "opening", "vehicle", "place", "area")
EDIBLE = ("food", "mass", "drink")


@dataclass(frozen=True)
class Phrase:
    """A noun phrase, with the features that verbs, adjectives and pronouns agree with."""
    en: list
    fr: list
    feminine: bool = False
    plural: bool = False
    person: int = IL
    kind: str = "person"

    @property
    def english_third(self):
        return self.person == IL


PRONOUNS = [
    Phrase(["i"], ["je"], person=JE),
    Phrase(["you"], ["vous"], person=VOUS),
    Phrase(["he"], ["il"]),
    Phrase(["she"], ["elle"], feminine=True),
    Phrase(["we"], ["nous"], plural=True, person=NOUS),
    Phrase(["they"], ["ils"], plural=True, person=ILS),
]

# ---------------------------------------------------------------- French surface rules

ELIDED = {"le": "l'", "la": "l'", "de": "d'", "ne": "n'", "ce": "c'", "je": "j'", "que": "qu'"}
CONTRACTED = {("à", "le"): "au", ("à", "les"): "aux", ("de", "le"): "du", ("de", "les"): "des"}


def french_surface(words):
    """Apply elision, then contraction: an elided l' keeps « à l' » and « de l' » apart."""
    elided = []
    for word, following in zip(words, words[1:] + ["."]):
        # The determiner « ce » is already « cet » before a vowel, so only the pronoun elides.
        elides = word in ELIDED and starts_with_vowel_sound(following)
        elided.append(ELIDED[word] if elides else word)
    result = []
    for word in elided:
        pair = (result[-1] if result else "", word)
        if pair in CONTRACTED:
            result[-1] = CONTRACTED[pair]
        else:
            result.append(word)
    return result


def english_indefinite(words):
    starts_with_vowel = words[0][0] in "aeiou" and not words[0].startswith(("uni", "use"))
    return ["an" if starts_with_vowel else "a"]


# ---------------------------------------------------------------- noun phrases

def french_indefinite(feminine):
    return "une" if feminine else "un"


def french_definite(feminine, plural):
    return "les" if plural else "la" if feminine else "le"


def french_demonstrative(feminine, plural, next_word):
    if plural:
        return "ces"
    if feminine:
        return "cette"
    return "cet" if starts_with_vowel_sound(next_word) else "ce"


def french_possessive(owner, feminine, plural, next_word):
    masculine_form, feminine_form, plural_form = POSSESSIVES[owner]
    if plural:
        return plural_form
    # ma becomes mon before a vowel: mon amie.
    use_feminine = feminine and not starts_with_vowel_sound(next_word)
    return feminine_form if use_feminine else masculine_form


def choose(rng, weights):
    return rng.choices(list(weights), list(weights.values()))[0]


SUBJECT_DETERMINERS = {"definite": 9, "possessive": 5, "demonstrative": 4, "indefinite": 2,
                       "number": 1}
OBJECT_DETERMINERS = {"definite": 6, "indefinite": 7, "possessive": 4, "demonstrative": 3,
                      "number": 2, "many": 1}
KNOWN_DETERMINERS = {"definite": 8, "possessive": 4, "demonstrative": 3}
SINGULAR_DETERMINERS = {"definite": 7, "indefinite": 4, "possessive": 4, "demonstrative": 2}


def noun_phrase(rng, kinds, determiners, *, negated=False, after_de=False, plural=None,
                adjective_rate=0.25):
    """A noun phrase with a third-person noun of one of the kinds.

    negated: direct object of a negated verb, where un/des/du become « de ».
    after_de: the phrase follows « de », which absorbs the plural and partitive articles.
    """
    noun = rng.choice(NOUNS[rng.choice(kinds)])
    mass = noun.kind in MASS_KINDS
    if plural is None:
        plural = rng.random() < 0.35
    plural = plural and not mass
    determiner = choose(rng, determiners)
    if mass and determiner in ("number", "many"):
        determiner = "indefinite"
    if determiner in ("number", "many"):
        if negated:
            determiner = "definite"
        else:
            plural = True

    en_words = [noun.en_plural if plural else noun.en]
    fr_words = [noun.fr_plural if plural else noun.fr]
    preposed = False
    for adjective in attributive_adjectives(rng, noun, adjective_rate):
        form = adjective.agree(noun.feminine, plural, fr_words[0] if adjective.before else None)
        en_words.insert(0, adjective.en)
        if adjective.before:
            fr_words.insert(0, form)
            preposed = True
        else:
            fr_words.append(form)

    if determiner == "definite":
        en_det, fr_det = ["the"], [french_definite(noun.feminine, plural)]
    elif determiner == "demonstrative":
        en_det = [rng.choice(["these", "those"] if plural else ["this", "that"])]
        fr_det = [french_demonstrative(noun.feminine, plural, fr_words[0])]
    elif determiner == "possessive":
        owner = rng.choice(list(POSSESSIVES))
        en_det = [owner]
        fr_det = [french_possessive(owner, noun.feminine, plural, fr_words[0])]
    elif determiner == "number":
        number = rng.choice(list(NUMBERS))
        en_det, fr_det = [number], [NUMBERS[number]]
    elif determiner == "many":
        en_det, fr_det = ["many"], ["beaucoup", "de"]
    elif plural or mass:
        en_det = ["any" if negated else "some"]
        if after_de:
            fr_det = []
        elif negated or (plural and preposed):  # de petites maisons
            fr_det = ["de"]
        elif plural:
            fr_det = ["des"]
        else:
            fr_det = ["de", french_definite(noun.feminine, False)]
    else:
        en_det = english_indefinite(en_words)
        fr_det = ["de"] if negated and not after_de else [french_indefinite(noun.feminine)]

    return Phrase(en_det + en_words, fr_det + fr_words, noun.feminine, plural,
                  ILS if plural else IL, noun.kind)


def adjectives_for(kind, *, predicative):
    return [a for a in ADJECTIVES if kind in a.kinds
            and (a.predicative if predicative else a.attributive)]


def attributive_adjectives(rng, noun, rate):
    """At most one adjective on each side of the French noun; English order size, then colour."""
    candidates = adjectives_for(noun.kind, predicative=False)
    if not candidates or rng.random() >= rate:
        return []
    first = rng.choice(candidates)
    after = [a for a in candidates if not a.before]
    if first.before and after and rng.random() < 0.2:
        return [rng.choice(after), first]
    return [first]


def name_phrase(rng):
    name, feminine = rng.choice(NAMES)
    return Phrase([name], [name], feminine)


def coordinated(rng, kinds):
    """X and Y; the masculine prevails in agreement."""
    def member():
        if kinds == ("person",) and rng.random() < 0.3:
            return name_phrase(rng)
        return noun_phrase(rng, kinds, KNOWN_DETERMINERS, plural=False, adjective_rate=0.1)
    left, right = member(), member()
    while right.fr == left.fr:
        right = member()
    return Phrase(left.en + ["and"] + right.en, left.fr + ["et"] + right.fr,
                  left.feminine and right.feminine, True, ILS, left.kind)


def subject_phrase(rng, kinds=("person",), pronoun_rate=0.5):
    if "person" in kinds:
        if rng.random() < pronoun_rate:
            return rng.choice(PRONOUNS)
        if rng.random() < 0.15:
            return name_phrase(rng)
        if rng.random() < 0.08:
            return coordinated(rng, ("person",))
    return noun_phrase(rng, kinds, SUBJECT_DETERMINERS)


# ---------------------------------------------------------------- verb phrases

ENGLISH_BE = {JE: "am", IL: "is", NOUS: "are", VOUS: "are", ILS: "are"}


def english_was(subject):
    return "was" if subject.person in (JE, IL) else "were"


FRENCH_PREPOSITIONS = {"on": "sur", "under": "sous", "behind": "derrière",
                       "in front of": "devant", "near": "près de", "next to": "à côté de"}
FURNITURE_PREPOSITIONS = ("on", "under", "behind", "next to")
PLACE_PREPOSITIONS = ("behind", "in front of", "near", "next to")


def place_complement(rng, portable=False):
    """Where something is or happens; portable things are also on, under … the furniture."""
    style = rng.random()
    if portable and style < 0.6:
        return near_landmark(rng, FURNITURE_PREPOSITIONS, ("furniture",))
    if style < 0.4:
        place = noun_phrase(rng, ("area",), KNOWN_DETERMINERS, plural=False, adjective_rate=0.1)
        return ["in"] + place.en, ["dans"] + place.fr
    if style < 0.6:
        place = noun_phrase(rng, ("place",), {"definite": 1}, plural=False, adjective_rate=0)
        return ["at"] + place.en, ["à"] + place.fr
    return near_landmark(rng, PLACE_PREPOSITIONS, PLACES)


def near_landmark(rng, prepositions, kinds):
    preposition = rng.choice(prepositions)
    landmark = noun_phrase(rng, kinds, SINGULAR_DETERMINERS, plural=False, adjective_rate=0.1)
    return preposition.split() + landmark.en, FRENCH_PREPOSITIONS[preposition].split() + landmark.fr


def companion(rng, verb):
    preposition, french = rng.choice([("with", "avec"), ("without", "sans"), ("for", "pour")])
    if verb.base == "wait":  # "wait for" is « attendre » without « pour »
        preposition, french = "with", "avec"
    person = (name_phrase(rng) if rng.random() < 0.3 else
              noun_phrase(rng, ("person",), KNOWN_DETERMINERS, adjective_rate=0.1))
    return [preposition] + person.en, [french] + person.fr


@dataclass(frozen=True)
class Predicate:
    """A verb and the complements that follow it."""
    verb: object
    en: list
    fr: list


def predicate(rng, kinds, *, negated=False, verbs=None, rich=True):
    """A predicate whose subject may be of one of the kinds."""
    table = verbs or rng.choices([TRANSITIVE, INTRANSITIVE, MOTION, LIKING, GIVING],
                                 [10, 5, 3, 2, 2])[0]
    if not any(subject_allowed(v, kinds) for v in table):
        table = INTRANSITIVE
    verb = rng.choice([v for v in table if subject_allowed(v, kinds)])
    en, fr = list(verb.particle), list(verb.preposition)
    after_de = fr[-1:] == ["de"]
    if table is LIKING:
        thing = liked_object(rng, verb)
        en, fr = en + thing.en, fr + thing.fr
    elif table is MOTION:
        place = noun_phrase(rng, verb.kinds, KNOWN_DETERMINERS, plural=False, adjective_rate=0.1)
        en, fr = en + place.en, fr + place.fr
    elif verb.kinds:
        object_negated = negated and (after_de or not verb.preposition)
        if rng.random() < 0.1 and "person" in verb.kinds:
            thing = name_phrase(rng)
        else:
            thing = noun_phrase(rng, verb.kinds, OBJECT_DETERMINERS, negated=object_negated,
                                after_de=after_de)
        en, fr = en + thing.en, fr + thing.fr
    if table is GIVING:
        person = (name_phrase(rng) if rng.random() < 0.3 else
                  noun_phrase(rng, ("person",), SINGULAR_DETERMINERS, adjective_rate=0.1,
                              plural=False if rng.random() < 0.5 else None))
        if "some" in person.en:  # « à des » is correct, but « à de » is not
            person = name_phrase(rng)
        en, fr = en + ["to"] + person.en, fr + ["à"] + person.fr
    elif rich and table is not MOTION and rng.random() < (0.5 if table is INTRANSITIVE else 0.1):
        place_en, place_fr = place_complement(rng) if rng.random() < 0.7 else companion(rng, verb)
        en, fr = en + place_en, fr + place_fr
    return Predicate(verb, en, fr)


def subject_allowed(verb, kinds):
    return set(kinds) <= set(SUBJECT_KINDS[verb.subjects])


def liked_object(rng, verb):
    if rng.random() < 0.6:
        return generic_phrase(rng, verb.kinds)
    return noun_phrase(rng, verb.kinds, KNOWN_DETERMINERS)


def generic_phrase(rng, kinds):
    """Cats, bread: the class as a whole, with a definite article in French only."""
    noun = rng.choice(NOUNS[rng.choice(kinds)])
    plural = noun.kind not in MASS_KINDS
    return Phrase([noun.en_plural if plural else noun.en],
                  [french_definite(noun.feminine, plural), noun.fr_plural if plural else noun.fr],
                  noun.feminine, plural, ILS if plural else IL, noun.kind)


def agreed_participle(participle, subject):
    word = participle + ("e" if subject.feminine else "")
    return french_plural(word) if subject.plural else word


TENSES = {"present": 6, "progressive": 4, "past": 5, "future": 4, "can": 1.5, "must": 1.5,
          "want": 1.5}


def possible_tense(tense, verb):
    lacking = (tense == "past" and not verb.past
               or tense == "progressive" and not verb.progressive)
    return "present" if lacking else tense


def choose_tense(rng, verb):
    tense = possible_tense(choose(rng, TENSES), verb)
    if tense == "want" and verb.base in ("want", "need", "prefer", "like", "love", "hate"):
        return "present"
    return tense


def finite(subject, pred, tense, *, negated=False, question=False, adverb=None):
    """Conjugate a predicate: (English tokens, French tokens), subject included."""
    en = english_finite(subject, pred, tense, negated, question, adverb)
    fr = french_finite(subject, pred, tense, negated, adverb)
    return en, fr


def english_finite(subject, pred, tense, negated, question, adverb):
    """Questions put the auxiliary first; "adverb" goes before a simple-present verb."""
    verb, third = pred.verb, subject.english_third
    auxiliary, rest = "", []
    if tense == "progressive":
        auxiliary, rest = ENGLISH_BE[subject.person], [verb.progressive]
    elif tense == "future":
        auxiliary, rest = ENGLISH_BE[subject.person], ["going", "to", verb.base]
    elif tense in ("can", "must"):
        auxiliary, rest = tense, [verb.base]
    elif negated or question:
        auxiliary = "did" if tense == "past" else "does" if third else "do"
        rest = ["want", "to", verb.base] if tense == "want" else [verb.base]
    elif tense == "past":
        rest = [verb.past]
    elif tense == "want":
        rest = ["wants" if third else "want", "to", verb.base]
    else:
        rest = ([adverb[0]] if adverb else []) + [verb.third if third else verb.base]
    auxiliary = [auxiliary] if auxiliary else []
    negation = ["not"] if negated else []
    if question:
        return auxiliary + subject.en + negation + rest + pred.en
    return subject.en + auxiliary + negation + rest + pred.en


def french_finite(subject, pred, tense, negated, adverb):
    verb, person = pred.verb, subject.person
    if tense == "past":
        if verb.with_etre:
            conjugated, rest = ETRE[person], [agreed_participle(verb.participle, subject)]
        else:
            conjugated, rest = AVOIR[person], [verb.participle]
    elif tense == "future":
        conjugated, rest = ALLER[person], [verb.infinitive]
    elif tense in MODALS:
        conjugated, rest = MODALS[tense][person], [verb.infinitive]
    else:
        conjugated, rest = verb.present[person], []
    if adverb == NEVER:
        words = ["ne", conjugated, "jamais"]
    elif adverb:
        words = [conjugated, adverb[1]]
    elif negated:
        words = ["ne", conjugated, "pas"]
    else:
        words = [conjugated]
    return subject.fr + words + rest + pred.fr


OFTEN, ALWAYS, NEVER = ("often", "souvent"), ("always", "toujours"), ("never", "jamais")
MIDDLE_ADVERBS = [OFTEN, ALWAYS, NEVER]


def time_complement(rng, tense):
    period = {"present": "present", "progressive": "progressive", "past": "past",
              "future": "future"}.get(tense, "future")
    en, fr = rng.choice(list(TIMES[period].items()))
    return en.split(), fr.split()


def clause(rng, *, subject=None, negated=False, question=False, tense=None, rich=True,
           kinds=None):
    """A clause with an action verb: (English, French); rich ones may add adverbs and places."""
    kinds = kinds or rng.choices([("person",), ("animal",), ("vehicle",)], [16, 3, 1])[0]
    subject = subject or subject_phrase(rng, kinds)
    takes_adverb = rich and not negated and not question
    adverb = None
    # "never" must be known before the object, whose article it changes.
    if takes_adverb and tense == "present" and rng.random() < 0.3:
        adverb = rng.choice(MIDDLE_ADVERBS)
    pred = predicate(rng, kinds, negated=negated or adverb == NEVER, rich=rich)
    tense = possible_tense(tense, pred.verb) if tense else choose_tense(rng, pred.verb)
    if takes_adverb and adverb is None and tense == "present" and rng.random() < 0.15:
        adverb = rng.choice([OFTEN, ALWAYS])
    en, fr = finite(subject, pred, tense, negated=negated, question=question, adverb=adverb)
    if rich and adverb is None and pred.verb.base not in STATIVE_BASES and rng.random() < 0.12:
        time_en, time_fr = time_complement(rng, tense)
        en, fr = en + time_en, fr + time_fr
    return en, fr


STATIVE_BASES = {v.base for v in TRANSITIVE + LIKING if not v.progressive}

# ---------------------------------------------------------------- to be

BE_TENSES = {"present": 7, "past": 3, "future": 1}


def to_be(subject, tense, en_attribute, fr_attribute, *, negated=False, question=False):
    not_en = ["not"] if negated else []
    if tense == "past":
        be, rest, conjugated, infinitive = english_was(subject), [], ETRE_IMPERFECT, []
    elif tense == "future":
        be, rest = ENGLISH_BE[subject.person], ["going", "to", "be"]
        conjugated, infinitive = ALLER, ["être"]
    else:
        be, rest, conjugated, infinitive = ENGLISH_BE[subject.person], [], ETRE, []
    if question:
        en = [be] + subject.en + not_en + rest + en_attribute
    else:
        en = subject.en + [be] + not_en + rest + en_attribute
    verb = conjugated[subject.person]
    verb = ["ne", verb, "pas"] if negated else [verb]
    return en, subject.fr + verb + infinitive + fr_attribute


def predicative_adjectives(subject, said=()):
    """Adjectives that neither repeat nor contradict those already said of the subject."""
    words = set(subject.en) | set(said)
    clashing = {word for group in EXCLUSIVE_ADJECTIVES if words & group for word in group} | words
    return [a for a in adjectives_for(subject.kind, predicative=True) if a.en not in clashing]


def adjective_attribute(rng, subject, said=()):
    adjective = rng.choice(predicative_adjectives(subject, said)
                           or adjectives_for(subject.kind, predicative=True))
    en, fr = [adjective.en], [adjective.agree(subject.feminine, subject.plural)]
    if adjective.en not in UNGRADED_ADJECTIVES and rng.random() < 0.25:
        degree = rng.choice([("very", "très"), ("too", "trop")])
        en, fr = [degree[0]] + en, [degree[1]] + fr
    return en, fr


def describable_subject(rng):
    if rng.random() < 0.45:
        return subject_phrase(rng, ("person",))
    kind = rng.choice(THINGS + EDIBLE + ("animal",))
    return noun_phrase(rng, (kind,), KNOWN_DETERMINERS, adjective_rate=0.15)


def be_adjective_clause(rng, *, subject=None, negated=False, question=False, tense=None, said=()):
    subject = subject or describable_subject(rng)
    tense = tense or choose(rng, BE_TENSES)
    en, fr = adjective_attribute(rng, subject, said)
    return to_be(subject, tense, en, fr, negated=negated, question=question)


# ---------------------------------------------------------------- constructions
# Each returns (English words, French words, final punctuation or "" for a statement).

def statement(rng):
    return *clause(rng), ""


def habit(rng):
    return *clause(rng, tense="present"), ""


def negation(rng):
    return *clause(rng, negated=True), ""


def yes_no_question(rng):
    negated = rng.random() < 0.1
    en, fr = clause(rng, question=True, negated=negated)
    return en, ["est-ce", "que"] + fr, "?"


def object_question(rng):
    """What do you eat? / Who do you help? — the verb keeps no object."""
    whom = rng.random() < 0.35
    verb = rng.choice([v for v in TRANSITIVE if not v.preposition
                       and (("person" in v.kinds) if whom else v.kinds != ("person",))])
    subject = subject_phrase(rng, ("person",), pronoun_rate=0.6)
    pred = Predicate(verb, list(verb.particle), [])
    en, fr = finite(subject, pred, choose_tense(rng, verb), question=True)
    if whom:
        return ["who"] + en, ["qui", "est-ce", "que"] + fr, "?"
    return ["what"] + en, ["qu'", "est-ce", "que"] + fr, "?"


def subject_question(rng):
    who = Phrase(["who"], ["qui"])
    if rng.random() < 0.25:
        return *be_adjective_clause(rng, subject=who), "?"
    return *clause(rng, subject=who, negated=rng.random() < 0.1, kinds=("person",)), "?"


def adverb_question(rng):
    word, french = rng.choice([("why", "pourquoi"), ("when", "quand"), ("where", "où"),
                               ("how", "comment")])
    if word == "why" and rng.random() < 0.4:
        en, fr = be_adjective_clause(rng, question=True)
    elif word == "why":
        en, fr = clause(rng, question=True, rich=False)
    else:
        # Verbs of motion already say where.
        table = rng.choice([INTRANSITIVE, TRANSITIVE])
        pred = predicate(rng, ("person",), verbs=table, rich=False)
        tense = choose_tense(rng, pred.verb)
        en, fr = finite(subject_phrase(rng), pred, tense, question=True)
    return [word] + en, [french, "est-ce", "que"] + fr, "?"


def where_is(rng):
    kinds = rng.choice([PORTABLE, PLACES, ANIMATE, ("vehicle",)])
    thing = noun_phrase(rng, kinds, KNOWN_DETERMINERS)
    if rng.random() < 0.15:
        thing = name_phrase(rng)
    if rng.random() < 0.3:
        be, french_be = english_was(thing), ETRE_IMPERFECT[thing.person]
    else:
        be, french_be = ENGLISH_BE[thing.person], ETRE[thing.person]
    return ["where", be] + thing.en, ["où", french_be] + thing.fr, "?"


def who_is(rng):
    person = noun_phrase(rng, ("person",), {"demonstrative": 3, "possessive": 1, "definite": 1})
    return (["who", ENGLISH_BE[person.person]] + person.en,
            ["qui", ETRE[person.person]] + person.fr, "?")


def be_adjective(rng):
    return *be_adjective_clause(rng, negated=rng.random() < 0.25), ""


def be_adjective_question(rng):
    en, fr = be_adjective_clause(rng, question=True)
    return en, ["est-ce", "que"] + fr, "?"


def be_somewhere(rng):
    kinds = rng.choice([PORTABLE, ("person",), ("person",), ("animal",), ("vehicle",)])
    subject = subject_phrase(rng, kinds)
    question = rng.random() < 0.2
    tense = choose(rng, BE_TENSES)
    en_place, fr_place = place_complement(rng, subject.kind in PORTABLE + ("animal",))
    en, fr = to_be(subject, tense, en_place, fr_place, question=question,
                   negated=not question and rng.random() < 0.2)
    return (en, ["est-ce", "que"] + fr, "?") if question else (en, fr, "")


def there_is(rng):
    kinds = rng.choice([PORTABLE, EDIBLE, ANIMATE, ("vehicle",), PLACES])
    form = rng.choices(["plain", "negated", "question"], [6, 2, 2])[0]
    determiners = {"indefinite": 6}
    if form == "plain":
        determiners |= {"number": 3, "many": 2}
    thing = noun_phrase(rng, kinds, determiners, negated=form == "negated")
    if thing.kind in PLACES:
        en_place, fr_place = near_landmark(rng, PLACE_PREPOSITIONS, PLACES)
    else:
        portable = thing.kind in PORTABLE + EDIBLE + ("animal",)
        en_place, fr_place = place_complement(rng, portable)
    be = ENGLISH_BE[thing.person]
    if form == "question":
        return ([be, "there"] + thing.en + en_place,
                ["est-ce", "que", "il", "y", "a"] + thing.fr + fr_place, "?")
    if form == "negated":
        return (["there", be, "not"] + thing.en + en_place,
                ["il", "ne", "y", "a", "pas"] + thing.fr + fr_place, "")
    return ["there", be] + thing.en + en_place, ["il", "y", "a"] + thing.fr + fr_place, ""


def this_is(rng):
    kinds = rng.choice([PORTABLE, ANIMATE, ("vehicle",), PLACES, ("food",)])
    thing = noun_phrase(rng, kinds, SINGULAR_DETERMINERS | {"demonstrative": 0})
    pronoun = rng.choice(["these", "those"] if thing.plural else ["this", "that"])
    be = ENGLISH_BE[thing.person]
    form = rng.choices(["plain", "negated", "question"], [6, 2, 2])[0]
    if form == "question":
        return [be, pronoun] + thing.en, ["est-ce", "que", "ce", ETRE[thing.person]] + thing.fr, "?"
    if form == "negated":
        return ([pronoun, be, "not"] + thing.en,
                ["ce", "ne", ETRE[thing.person], "pas"] + thing.fr, "")
    return [pronoun, be] + thing.en, ["ce", ETRE[thing.person]] + thing.fr, ""


def state(rng):
    """To be hungry, to be six years old: « avoir » in French."""
    subject = subject_phrase(rng)
    have = AVOIR[subject.person]
    negated = rng.random() < 0.25
    if rng.random() < 0.35:
        number = rng.choice(list(NUMBERS))
        en_rest, fr_rest = [number, "years", "old"], [NUMBERS[number], "ans"]
    else:
        word = rng.choice(list(STATES))
        en_rest, fr_rest = [word], [STATES[word]]
    be = ENGLISH_BE[subject.person]
    if rng.random() < 0.2:
        return [be] + subject.en + en_rest, ["est-ce", "que"] + subject.fr + [have] + fr_rest, "?"
    if negated:
        return subject.en + [be, "not"] + en_rest, subject.fr + ["ne", have, "pas"] + fr_rest, ""
    return subject.en + [be] + en_rest, subject.fr + [have] + fr_rest, ""


def comparison(rng):
    subject = describable_subject(rng)
    adjectives = [a for a in predicative_adjectives(subject)
                  if a.en not in UNGRADED_ADJECTIVES | {"good", "bad"}]
    if subject.kind == "person" and rng.random() < 0.3:
        other = name_phrase(rng)
    else:
        other = noun_phrase(rng, (subject.kind,), KNOWN_DETERMINERS, adjective_rate=0)
    if not adjectives or other.fr[-1] in subject.fr:  # nothing to say, or colder than itself
        return comparison(rng)
    adjective = rng.choice(adjectives)
    form = adjective.agree(subject.feminine, subject.plural)
    if rng.random() < 0.3:
        comparative, than, french = ["as", adjective.en], ["as"], "aussi"
    else:
        than, french = ["than"], "plus"
        comparative = [adjective.comparative] if adjective.comparative else ["more", adjective.en]
    en, fr = to_be(subject, "present", comparative + than + other.en,
                   [french, form, "que"] + other.fr, negated=rng.random() < 0.15)
    return en, fr, ""


PART_OWNERS = {"color": THINGS, "roof": PLACES, "name": PLACES + ANIMATE, "price": PORTABLE,
               "end": ("text",), "door": PLACES, "window": PLACES, "key": PLACES,
               "photo": ANIMATE + PLACES}
PARTS = [n for n in NOUNS["part"] + NOUNS["opening"] + NOUNS["object"] if n.en in PART_OWNERS]
PART_ADJECTIVES = {"color": ("beautiful",), "name": ("beautiful", "funny"), "end": ("sad", "funny"),
                   "price": ("good",)}


def part_of(rng):
    """The door of the house: de + article contracts."""
    part = rng.choice(PARTS)
    owner = noun_phrase(rng, PART_OWNERS[part.en], KNOWN_DETERMINERS, adjective_rate=0.1)
    whole = Phrase(["the", part.en, "of"] + owner.en,
                   [french_definite(part.feminine, False), part.fr, "de"] + owner.fr,
                   part.feminine, kind="object" if part.kind == "part" else part.kind)
    if part.kind != "part" and rng.random() < 0.5:
        verbs = [v for v in TRANSITIVE if part.kind in v.kinds and not v.preposition]
        pred = Predicate(verb := rng.choice(verbs), list(verb.particle) + whole.en, whole.fr)
        return *finite(subject_phrase(rng), pred, choose_tense(rng, verb)), ""
    if part.kind == "part":
        allowed = [a for a in ADJECTIVES if a.predicative
                   and a.en in PART_ADJECTIVES.get(part.en, ("old", "beautiful"))]
        adjective = rng.choice(allowed)
        en, fr = [adjective.en], [adjective.agree(whole.feminine, whole.plural)]
    else:
        en, fr = adjective_attribute(rng, whole)
    return *to_be(whole, choose(rng, BE_TENSES), en, fr), ""


def coordinated_subject(rng):
    kinds = rng.choice([("person",), ("person",), ("animal",), ("object",), ("vehicle",)])
    subject = coordinated(rng, kinds)
    if kinds[0] in ANIMATE and rng.random() < 0.5:
        return *clause(rng, subject=subject, kinds=kinds, rich=False), ""
    return *be_adjective_clause(rng, subject=subject), ""


def simple_clause(rng):
    """A short clause whose pronouns need no antecedent."""
    if rng.random() < 0.3:
        subject = subject_phrase(rng, pronoun_rate=0.7)
        return be_adjective_clause(rng, subject=subject, negated=rng.random() < 0.15)
    return clause(rng, rich=False, kinds=("person",), negated=rng.random() < 0.1)


def second_clause(rng):
    """Without "they", which might refer to women named in the first clause: « elles »."""
    while True:
        en, fr = simple_clause(rng)
        if "they" not in en:
            return en, fr


def two_clauses(rng):
    left_en, left_fr = simple_clause(rng)
    right = second_clause(rng)
    conjunction, french = rng.choice([("and", ["et"]), ("but", ["mais"]),
                                      ("because", ["parce", "que"]), ("when", ["quand"])])
    return left_en + [conjunction] + right[0], left_fr + french + right[1], ""


def anaphora(rng):
    """The house is old but it is beautiful: the pronoun agrees with its antecedent."""
    kind = rng.choice(THINGS + EDIBLE + ANIMATE + ANIMATE)
    subject = noun_phrase(rng, (kind,), KNOWN_DETERMINERS, adjective_rate=0.1)
    left = be_adjective_clause(rng, subject=subject, tense="present")
    if subject.plural:
        pronoun_en, pronoun_fr = "they", "elles" if subject.feminine else "ils"
    elif kind == "person":
        pronoun_en, pronoun_fr = ("she", "elle") if subject.feminine else ("he", "il")
    else:
        pronoun_en, pronoun_fr = "it", "elle" if subject.feminine else "il"
    pronoun = Phrase([pronoun_en], [pronoun_fr], subject.feminine, subject.plural,
                     subject.person, kind)
    right = be_adjective_clause(rng, subject=pronoun, tense="present", said=left[0],
                                negated=rng.random() < 0.2)
    conjunction, french = rng.choice([("but", "mais"), ("and", "et")])
    return left[0] + [conjunction] + right[0], left[1] + [french] + right[1], ""


def opinion(rng):
    """I think that …: the verb stays affirmative, so the indicative follows."""
    verb = rng.choice(OPINION)
    subject = subject_phrase(rng, pronoun_rate=0.7)
    inner_en, inner_fr = second_clause(rng)
    en = subject.en + [verb.third if subject.english_third else verb.base, "that"] + inner_en
    return en, subject.fr + [verb.present[subject.person], "que"] + inner_fr, ""


def relative_subject(rng):
    """The man who sings is tired."""
    kinds = rng.choice([("person",), ("person",), ("animal",)])
    subject = noun_phrase(rng, kinds, {"definite": 3, "demonstrative": 1}, adjective_rate=0.1)
    relative = "who" if kinds == ("person",) else "that"
    whole = Phrase(subject.en + [relative], subject.fr + ["qui"], subject.feminine,
                   subject.plural, subject.person, subject.kind)
    tense = rng.choice(["present", "progressive", "past"])
    en, fr = clause(rng, subject=whole, kinds=kinds, rich=False, tense=tense)
    full = Phrase(en, fr, subject.feminine, subject.plural, subject.person, subject.kind)
    return *be_adjective_clause(rng, subject=full, tense="present"), ""


def relative_object(rng):
    """The book that i am reading is new; present only, as a past participle would agree."""
    verb = rng.choice([v for v in TRANSITIVE + LIKING if not v.preposition])
    kind = rng.choice(verb.kinds)
    antecedent = noun_phrase(rng, (kind,), {"definite": 1}, adjective_rate=0.1)
    subject = subject_phrase(rng, pronoun_rate=0.7)
    tense = rng.choice(["present", "progressive"] if verb.progressive else ["present"])
    pred = Predicate(verb, list(verb.particle), [])
    en, fr = finite(subject, pred, tense)
    whole = Phrase(antecedent.en + ["that"] + en, antecedent.fr + ["que"] + fr,
                   antecedent.feminine, antecedent.plural, antecedent.person, kind)
    return *be_adjective_clause(rng, subject=whole, tense="present"), ""


IMPERATIVE_EXCLUDED = {"have", "want", "need", "know", "see", "hear", "fall", "lose", "like",
                       "love", "hate", "prefer", "meet"}


def imperative(rng):
    """Open the door! / Let us eat! — the vous and nous forms without a subject."""
    negated = rng.random() < 0.25
    while True:
        pred = predicate(rng, ("person",), negated=negated, rich=rng.random() < 0.3)
        if pred.verb.base not in IMPERATIVE_EXCLUDED:
            break
    style = rng.choices(["vous", "nous", "please"], [5, 2, 2])[0]
    verb_fr = pred.verb.present[NOUS if style == "nous" else VOUS]
    verb_fr = ["ne", verb_fr, "pas"] if negated else [verb_fr]
    if style == "nous":
        en = ["let", "us"] + (["not"] if negated else []) + [pred.verb.base] + pred.en
        return en, verb_fr + pred.fr, "!"
    en = (["do", "not"] if negated else []) + [pred.verb.base] + pred.en
    if style == "please":
        return ["please"] + en, verb_fr + pred.fr + [",", "s'", "il", "vous", "plaît"], "!"
    return en, verb_fr + pred.fr, "!"


def greeting(rng):
    en, fr = rng.choice(list(GREETINGS.items()))
    en, fr = en.split(), fr.split()
    if rng.random() < 0.85:
        who, french = rng.choice(list(ADDRESSEES.items()))
        en, fr = en + who.split(), fr + french.split()
    return en, fr, rng.choice(["!", "!", "."])


def introduction(rng):
    name, _ = rng.choice(NAMES)
    kind = rng.randrange(4)
    if kind == 0:
        return ["my", "name", "is", name], ["je", "m'", "appelle", name], "."
    if kind == 1:
        return ["what", "is", "your", "name"], ["comment", "vous", "appelez-vous"], "?"
    if kind == 2:
        return ["how", "are", "you", name], ["comment", "allez-vous", name], "?"
    return ["how", "are", "you"], ["comment", "allez-vous"], "?"


def weather(rng):
    en, fr = rng.choice(list(WEATHER.items()))
    en, fr = en.split(), fr.split()
    if rng.random() < 0.5:
        left_en, left_fr = clause(rng, rich=False, kinds=("person",))
        return left_en + ["because"] + en, left_fr + ["parce", "que"] + fr, ""
    if en[-1] in ("late", "early"):
        return en + ["now"], fr + ["maintenant"], ""
    place = rng.choice([n for n in NOUNS["area"] if n.en in OUTDOORS])
    definite = french_definite(place.feminine, False)
    return en + ["in", "the", place.en], fr + ["dans", definite, place.fr], ""


def answer(rng):
    negated = rng.random() < 0.5
    subject = rng.choice(PRONOUNS)
    if rng.random() < 0.4:
        en, fr = be_adjective_clause(rng, subject=subject, negated=negated)
    else:
        en, fr = clause(rng, subject=subject, kinds=("person",), negated=negated, rich=False)
    yes = (["no", ","], ["non", ","]) if negated else (["yes", ","], ["oui", ","])
    return yes[0] + en, yes[1] + fr, ""


# Weight of each construction in the training data; the held-out set draws them evenly.
CONSTRUCTIONS = {
    statement: 20, habit: 6, negation: 10, yes_no_question: 8, object_question: 3,
    subject_question: 3, adverb_question: 4, where_is: 2, who_is: 1, be_adjective: 10,
    be_adjective_question: 3, be_somewhere: 4, there_is: 5, this_is: 3, state: 3, comparison: 6,
    part_of: 4, coordinated_subject: 4, two_clauses: 6, anaphora: 4, opinion: 4,
    relative_subject: 3, relative_object: 3, imperative: 4, greeting: 1, introduction: 0.5,
    weather: 1, answer: 2,
}


def generate(rng, construction=None):
    """One sentence pair: (English tokens, French tokens)."""
    while True:
        rule = construction or rng.choices(list(CONSTRUCTIONS), list(CONSTRUCTIONS.values()))[0]
        en, fr, mark = rule(rng)
        if not mark and rng.random() < 0.5:
            mark = "."
        end = [mark] if mark else []
        en, fr = en + end, french_surface(fr + end)
        if len(en) <= MAX_TOKENS and len(fr) <= MAX_TOKENS:
            return en, fr


def join_french(tokens):
    """A token ending in an apostrophe is joined to the next; all others are spaced."""
    text = "".join(t if t.endswith("'") else t + " " for t in tokens)
    return text.strip()


def main():
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    for construction in CONSTRUCTIONS:
        print(f"\n# {construction.__name__}")
        for _ in range(6):
            en, fr = generate(rng, construction)
            print(" ".join(en), "\t", join_french(fr))


if __name__ == "__main__":
    main()
