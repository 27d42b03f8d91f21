"""The conformance suite of the format: `python make_vectors.py` writes it beside itself.

Every `NAME.safetensors` here is a file of a few hundred bytes that breaks, or just keeps, one rule.
`verdicts.tsv` says of each what a reader must answer under the three profiles, and what the
reference answers:

    strict, default, reference   `ok`, or the code of the refusal
    crate                        `ok` or `refused` by the `safetensors` crate 0.8.0
    python                       `ok` or `refused` by Python's safetensors 0.8.0; `unreadable` where it
                                 opens the file and cannot give a tensor of it to numpy

The first four are written down here, by the format's rules; the last is what the installed package
answers. The output depends on nothing else, so a second run changes no byte.
"""

import json
import pathlib
import struct

import safetensors

HERE = pathlib.Path(__file__).parent
SUFFIX = ".safetensors"
LIMIT = 100_000_000

DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip

# The tensor that most vectors hold: two bytes.
W_ENTRY = '{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
W = f'"w":{W_ENTRY}'


def main():
    for old in HERE.glob("*" + SUFFIX):
        old.unlink()
    vectors = Vectors()
    length_prefix(vectors)
    foreign_files(vectors)
    text(vectors)
    json_grammar(vectors)
    numbers(vectors)
    nesting(vectors)
    metadata(vectors)
    entries(vectors)
    names(vectors)
    dtypes(vectors)
    shapes(vectors)
    placement(vectors)
    file_length(vectors)
    vectors.write()


# ---- rules 1 to 4: the eight bytes in front


def length_prefix(v):
    v.refused("empty_file", b"", "header-too-short")
    v.refused("seven_bytes", bytes(7), "header-too-short")
    v.differs("prefix_zero", bytes(8), "header-start", "header-not-object")
    v.differs("prefix_zero_with_data", bytes(9), "header-start", "header-not-object")
    v.refused("prefix_only", prefix(2), "header-truncated")
    v.refused("header_truncated_by_1", prefix(3) + b"{}", "header-truncated")
    v.refused("prefix_limit", prefix(LIMIT) + b"{}", "header-truncated")
    v.refused("prefix_limit_plus_1", prefix(LIMIT + 1) + b"{}", "header-too-large")
    v.refused("prefix_2_63", prefix(2**63) + b"{}", "header-too-large")
    v.refused("prefix_2_64_minus_1", prefix(2**64 - 1) + b"{}", "header-too-large")
    v.refused("prefix_big_endian", struct.pack(">Q", 2) + b"{}", "header-too-large")
    # 640 is 80 02 in little-endian, as a pickle begins.
    v.refused("prefix_like_pickle", prefix(640) + b"{" + W.encode(), "header-truncated")


def foreign_files(v):
    head = b"0123456789abcdef"
    foreign = {
        "zip": b"PK\x03\x04\x14\0\0\0\x08\0" + head,
        "zip_empty": b"PK\x05\x06" + bytes(18),
        "pickle_2": b"\x80\x02}q\0(X\x01\0\0\0wq\x01K\x01u.",
        "pickle_3": b"\x80\x03}q\0(X\x01\0\0\0wq\x01K\x01u.",
        "pickle_4": b"\x80\x04\x95\x0a\0\0\0\0\0\0\0}\x94\x8c\x01w\x94K\x01s.",
        "pickle_5": b"\x80\x05\x95\x0a\0\0\0\0\0\0\0}\x94\x8c\x01w\x94K\x01s.",
        "pickle_of_none": b"\x80\x04N.",
        "torch_legacy": b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
        "gguf": b"GGUF" + struct.pack("<IQQ", 3, 1, 0),
        "npy": b"\x93NUMPY\x01\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n",
        "gzip": b"\x1f\x8b\x08\0\0\0\0\0\x02\x03" + head,
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(8),
        "html": b"<!DOCTYPE html><html><title>Not found</title></html>",
        "html_after_space": b"\n\n  <html lang=en><title>Log in</title></html>",
        "html_upper_case": b"<HTML><BODY>403</BODY></HTML>",
        "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "json_error": b'{"error":"Repository not found"}',
        "git_lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
    }
    for name, file in foreign.items():
        v.refused(f"foreign_{name}", file, "not-safetensors")


# ---- rules 5 to 7: text and padding


def text(v):
    v.refused("utf8_invalid_byte", st(b'{"\xff":%b}' % W_ENTRY.encode(), 2), "header-not-utf8")
    v.refused("utf8_overlong", st(b'{"\xc0\xaf":%b}' % W_ENTRY.encode(), 2), "header-not-utf8")
    v.refused("utf8_surrogate", st(b'{"\xed\xa0\x80":%b}' % W_ENTRY.encode(), 2), "header-not-utf8")
    v.refused("utf8_cut_short", st(b'{"__metadata__":{"a":"\xf0\x9f\x98"}}'), "header-not-utf8")
    v.refused("utf8_invalid_padding", st(b"{}\xff\xff"), "header-not-utf8")
    v.differs("bom", st("\ufeff{%s}" % W, 2), "header-start", "header-not-object")
    v.accepted("padding_spaces", st("{%s}   " % W, 2))
    v.accepted("padding_to_64", st(("{%s}" % W).ljust(120), 2))
    v.differs("padding_tab", st("{%s}\t" % W, 2), "header-padding", "ok")
    v.differs("padding_newline", st("{%s}\n" % W, 2), "header-padding", "ok")
    v.differs("padding_nul", st("{%s}\0" % W, 2), "header-padding", "json-syntax")
    v.differs("padding_form_feed", st("{%s}\f" % W, 2), "header-padding", "json-syntax")
    v.differs("padding_text", st("{%s} x" % W, 2), "header-padding", "json-syntax")
    v.differs("second_object", st("{}{}"), "header-padding", "json-syntax")
    v.differs("lead_space", st(" {%s}" % W, 2), "header-start", "ok")
    v.differs("lead_newline", st("\r\n{%s}" % W, 2), "header-start", "ok")
    v.differs("only_spaces", st("    "), "header-start", "header-not-object")
    spaced = W.replace(":", " \t:\r\n ").replace(",", " ,\n").replace("[", "[ ")
    v.accepted("spaces_inside", st("{ \n%s\n }" % spaced, 2))


def json_grammar(v):
    v.accepted("no_tensors", st("{}"))
    v.accepted("no_tensors_padded", st("{}      "))
    for name, root in [("array", "[]"), ("string", '"{}"'), ("number", "1"), ("null", "null")]:
        v.differs(f"root_{name}", st(root), "header-start", "header-not-object")
    for name, header in [
        ("unclosed", "{%s" % W),
        ("open_brace_only", "{"),
        ("trailing_comma", "{%s,}" % W),
        ("leading_comma", "{,%s}" % W),
        ("missing_comma", '{%s "v":%s}' % (W, W_ENTRY)),
        ("missing_colon", '{"w"%s}' % W_ENTRY),
        ("wrong_bracket", "{%s]" % W),
        ("name_unquoted", "{w:%s}" % W_ENTRY),
        ("name_single_quotes", "{'w':%s}" % W_ENTRY),
        ("name_number", "{1:%s}" % W_ENTRY),
        ("comment", "{/*w*/%s}" % W),
        ("control_character", '{"w\x01":%s}' % W_ENTRY),
        ("newline_in_name", '{"w\n":%s}' % W_ENTRY),
        ("escape_unknown", '{"\\x77":%s}' % W_ENTRY),
        ("escape_cut_short", '{"\\u00":%s}' % W_ENTRY),
        ("escape_signed", '{"\\u+077":%s}' % W_ENTRY),
        ("surrogate_high_alone", '{"\\ud800":%s}' % W_ENTRY),
        ("surrogate_low_alone", '{"\\udc00":%s}' % W_ENTRY),
        ("surrogate_high_twice", '{"\\ud800\\ud800":%s}' % W_ENTRY),
        ("surrogate_high_then_text", '{"\\ud800x":%s}' % W_ENTRY),
        ("array_missing_comma", '{"w":{"dtype":"U8","shape":[1 2],"data_offsets":[0,2]}}'),
    ]:
        v.refused(f"json_{name}", st(header, 2), "json-syntax")
    v.refused("json_missing_value", st('{"w":}', 2), "entry-type")
    trailing_comma = W.replace("[2]", "[2,]")
    v.refused("json_array_trailing_comma", st("{%s}" % trailing_comma, 2), "field-type")


# ---- rules 6, 9 to 11: integers are integer tokens


def numbers(v):
    forms = {
        "float": "2.0",
        "exponent": "2e0",
        "exponent_upper": "20E-1",
        "minus_zero": "-0",
        "negative": "-2",
        "plus": "+2",
        "leading_zero": "02",
        "hex": "0x2",
        "2_64": str(2**64),
        "2_65": str(2**65),
        "nan": "NaN",
        "string": '"2"',
        "true": "true",
        "null": "null",
        "array": "[2]",
        "object": "{}",
        "nothing": "",
    }
    for name, form in forms.items():
        shape = '{"w":{"dtype":"U8","shape":[1,%s],"data_offsets":[0,2]}}' % form
        v.refused(f"dim_{name}", st(shape, 2), "json-syntax" if name == "hex" else "field-type")
        offsets = '{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,%s]}}' % form
        v.refused(f"offset_{name}", st(offsets, 2), "field-type")
    v.refused("offset_minus_zero_first", st('{"w":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}', 2), "field-type")
    v.refused("dim_2_64_minus_1", st(one("U8", [2**64 - 1], 0, 2), 2), "shape-overflow")
    # Numbers that only have to be skipped may have any form that JSON allows.
    for name, number, code in [
        ("any_form", "[0,-0,1.5,-1e5,1E+2,2e-3,18446744073709551616,1e-400]", "ok"),
        ("beyond_double", "1e400", "json-syntax"),
        ("leading_zero", "01", "json-syntax"),
        ("no_fraction", "1.", "json-syntax"),
        ("no_exponent", "1e", "json-syntax"),
        ("minus_alone", "-", "json-syntax"),
        ("nan", "NaN", "json-syntax"),
        ("infinity", "Infinity", "json-syntax"),
    ]:
        v.differs(f"ignored_number_{name}", st(ignored(number), 2), "field-unknown", code)


def nesting(v):
    # The header and the tensor's entry are two levels; the recursion limit of the reference is 128.
    for depth in (126, 127, 128):
        for name, opening, closing in [("array", "[", "]"), ("object", '{"a":', "}")]:
            inner = depth - 2
            value = opening * inner + ("" if name == "array" else "0") + closing * inner
            code = "ok" if depth < 128 else "json-depth"
            v.differs(f"depth_{depth}_{name}", st(ignored(value), 2), "field-unknown", code)
    v.differs("depth_unclosed", st(ignored("[" * 300), 2), "field-unknown", "json-depth")


# ---- rule 8: `__metadata__`


def metadata(v):
    v.accepted("meta", st('{"__metadata__":{"format":"pt"},%s}' % W, 2))
    v.accepted("meta_empty", st('{"__metadata__":{},%s}' % W, 2))
    v.accepted("meta_last", st('{%s,"__metadata__":{"format":"pt"}}' % W, 2))
    v.accepted("meta_alone", st('{"__metadata__":{"a":"1","b":"2"}}'))
    v.accepted("meta_escapes", st('{"__metadata__":{"\\u00e9":"\\ud83d\\ude00\\n\\/\\"\\\\","":""}}'))
    v.accepted("meta_escaped_name", st('{"\\u005f_metadata__":{"format":"pt"}}'))
    v.differs("meta_null", st('{"__metadata__":null,%s}' % W, 2), "metadata-type", "ok")
    for name, value in [
        ("array", "[]"),
        ("string", '"pt"'),
        ("number", "1"),
        ("false", "false"),
        ("value_number", '{"a":1}'),
        ("value_null", '{"a":null}'),
        ("value_bool", '{"a":true}'),
        ("value_object", '{"a":{}}'),
        ("value_array", '{"a":["b"]}'),
        ("is_tensor", W_ENTRY),
    ]:
        v.refused(f"meta_{name}", st('{"__metadata__":%s,%s}' % (value, W), 2), "metadata-type")
    twice = '"__metadata__":{"a":"1"}'
    v.refused("meta_twice", st("{%s,%s}" % (twice, twice)), "duplicate-key")
    v.refused("meta_twice_escaped", st('{%s,"\\u005f_metadata__":{}}' % twice), "duplicate-key")
    v.refused("meta_twice_apart", st("{%s,%s,%s}" % (twice, W, twice), 2), "duplicate-key")
    v.differs("meta_null_twice", st('{"__metadata__":null,"__metadata__":null}'), "metadata-type", "duplicate-key")
    key_twice = '{"__metadata__":{"a":"1","b":"2","%s":"3"}}'
    v.differs("meta_key_twice", st(key_twice % "a"), "duplicate-key", "duplicate-key", "ok")
    v.differs("meta_key_twice_escaped", st(key_twice % "\\u0061"), "duplicate-key", "duplicate-key", "ok")
    v.differs("meta_key_twice_same_value", st('{"__metadata__":{"a":"1","a":"1"}}'), "duplicate-key", "duplicate-key", "ok")
    v.refused("meta_surrogate", st('{"__metadata__":{"a":"\\ud800"}}'), "json-syntax")
    v.refused("meta_control_character", st('{"__metadata__":{"a":"\x1f"}}'), "json-syntax")


# ---- rule 9: a tensor's entry


def entries(v):
    dtype, shape, offsets = '"dtype":"U8"', '"shape":[2]', '"data_offsets":[0,2]'
    v.accepted("entry", st("{%s}" % W, 2))
    v.accepted("entry_fields_in_other_order", st('{"w":{%s,%s,%s}}' % (offsets, dtype, shape), 2))
    v.accepted("entry_field_escaped", st('{"w":{"\\u0064type":"U8",%s,%s}}' % (shape, offsets), 2))
    for name, value in [("null", "null"), ("string", '"U8"'), ("number", "2"), ("true", "true")]:
        v.refused(f"entry_{name}", st('{"w":%s}' % value, 2), "entry-type")
    v.refused("entry_empty", st('{"w":{}}'), "field-missing")
    v.refused("entry_no_dtype", st('{"w":{%s,%s}}' % (shape, offsets), 2), "field-missing")
    v.refused("entry_no_shape", st('{"w":{%s,%s}}' % (dtype, offsets), 2), "field-missing")
    v.refused("entry_no_offsets", st('{"w":{%s,%s}}' % (dtype, shape), 2), "field-missing")
    for name, field in [("dtype", dtype), ("shape", shape), ("offsets", offsets)]:
        twice = '{"w":{%s,%s,%s,%s}}' % (dtype, shape, offsets, field)
        v.refused(f"entry_{name}_twice", st(twice, 2), "duplicate-key")
    twice = '{"w":{%s,%s,%s,"\\u0064type":"U8"}}' % (dtype, shape, offsets)
    v.refused("entry_dtype_twice_escaped", st(twice, 2), "duplicate-key")

    positional = {
        "": ('["U8",[2],[0,2]]', "ok"),
        "_dtype_object": ('[{"U8":null},[2],[0,2]]', "ok"),
        "_empty": ("[]", "field-missing"),
        "_short": ('["U8",[2]]', "field-missing"),
        "_long": ('["U8",[2],[0,2],0]', "json-syntax"),
        "_other_order": ('[[2],"U8",[0,2]]', "field-type"),
    }
    for name, (value, code) in positional.items():
        v.differs(f"entry_positional{name}", st('{"w":%s}' % value, 2), "entry-type", "entry-type", code)

    v.differs("unknown_field", st(ignored("[8,1]"), 2), "field-unknown", "ok")
    v.differs("unknown_field_null", st(ignored("null"), 2), "field-unknown", "ok")
    v.differs("unknown_field_case", st(W.join("{}").replace('"w":{', '"w":{"Dtype":"F32",'), 2), "field-unknown", "ok")
    v.differs("unknown_field_bad_string", st(ignored('"\\ud800"'), 2), "field-unknown", "json-syntax")
    v.differs("unknown_field_bad_array", st(ignored("[1,]"), 2), "field-unknown", "json-syntax")
    v.differs("unknown_field_bad_literal", st(ignored("nul"), 2), "field-unknown", "json-syntax")
    repeated = {
        "": W.replace('"dtype"', '"x":1,"x":1,"dtype"'),
        "_escaped": W.replace('"dtype"', '"x":1,"\\u0078":1,"dtype"'),
        "_apart": W.replace('"dtype"', '"x":1,"dtype"').replace("]}", '],"x":1}'),
        "_inside": W.replace('"dtype"', '"x":{"a":1,"a":1},"dtype"'),
        "_deep_inside": W.replace('"dtype"', '"x":[{"b":{"a":1,"\\u0061":1}}],"dtype"'),
    }
    for name, entry in repeated.items():
        v.differs(f"unknown_field_twice{name}", st("{%s}" % entry, 2), "field-unknown", "duplicate-key", "ok")
    similar = W.replace('"dtype"', '"x":[{"a":1},{"a":1}],"y":{"a":{"a":1}},"dtype"')
    v.differs("unknown_fields_alike", st("{%s}" % similar, 2), "field-unknown", "ok")


# ---- rule 12: names


def names(v):
    for name, key in [
        ("empty", ""),
        ("unicode", "Gewicht_ß_重み_😀"),
        ("nul", "\\u0000"),
        ("escapes", '\\"\\\\\\/\\b\\f\\n\\r\\t'),
        ("surrogate_pair", "\\ud83d\\ude00"),
        ("surrogate_pair_upper", "\\uD83D\\uDE00"),
        ("delete_character", "\x7f"),
        ("like_metadata", "__METADATA__"),
        ("like_field", "dtype"),
        ("like_path", "../../etc/passwd"),
        ("long", "n" * 400),
    ]:
        v.accepted(f"name_{name}", st('{"%s":%s}' % (key, W_ENTRY), 2))
    equal_after_escape = '{"a":%s,"\\u0062":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}'
    v.accepted("names_differ_after_escape", st(equal_after_escape % W_ENTRY, 3))

    def twice(first, second, name="w"):
        return '{"w":%s,"%s":%s}' % (first, name, second)

    u8, i8 = W_ENTRY, W_ENTRY.replace("U8", "I8")
    behind = '{"dtype":"U8","shape":[2],"data_offsets":[2,4]}'
    bad = W_ENTRY.replace("[2]", "[3]")
    v.differs("dup_tensor_same", st(twice(u8, u8), 2), "duplicate-tensor", "duplicate-tensor", "ok")
    v.differs("dup_tensor_other_dtype", st(twice(u8, i8), 2), "duplicate-tensor", "duplicate-tensor", "ok")
    v.differs("dup_tensor_escaped", st(twice(u8, i8, "\\u0077"), 2), "duplicate-tensor", "duplicate-tensor", "ok")
    v.differs("dup_tensor_first_bad", st(twice(bad, u8), 2), "duplicate-tensor", "duplicate-tensor", "ok")
    v.differs("dup_tensor_second_bad", st(twice(u8, bad), 2), "duplicate-tensor", "duplicate-tensor", "size-mismatch")
    v.differs("dup_tensor_first_far", st(twice(behind, u8), 2), "duplicate-tensor", "duplicate-tensor", "ok")
    v.differs("dup_tensor_leaves_hole", st(twice(u8, behind), 4), "duplicate-tensor", "duplicate-tensor", "hole")
    v.refused("dup_tensor_first_not_entry", st(twice("null", u8), 2), "entry-type")
    three = '{"w":%s,"v":%s,"w":%s,"w":%s}' % (behind, u8, u8, behind.replace("U8", "I8"))
    v.differs("dup_tensor_three_times", st(three, 4), "duplicate-tensor", "duplicate-tensor", "ok")


# ---- rules 10 and 16: dtypes


def dtypes(v):
    for dtype, bits in DTYPE_BITS.items():
        v.accepted(f"dtype_{dtype.lower()}", st(one(dtype, [2, 4], 0, bits), bits))
        elements = [1, 2] if bits < 8 else []
        for n in elements:
            short = one(dtype, [n], 0, n * bits // 8)
            long = one(dtype, [n], 0, n * bits // 8 + 1)
            code = "sub-byte-remainder" if n * bits % 8 else None
            if code:
                v.refused(f"remainder_{dtype.lower()}_{n}_short", st(short, n * bits // 8), code)
                v.refused(f"remainder_{dtype.lower()}_{n}_long", st(long, n * bits // 8 + 1), code)
            else:
                v.accepted(f"no_remainder_{dtype.lower()}_{n}", st(short, n * bits // 8))
                v.refused(f"mismatch_{dtype.lower()}_{n}", st(long, n * bits // 8 + 1), "size-mismatch")
        if bits < 8:
            v.refused(f"remainder_{dtype.lower()}_scalar", st(one(dtype, [], 0, 1), 1), "sub-byte-remainder")
            v.refused(f"remainder_{dtype.lower()}_odd", st(one(dtype, [3, 3], 0, 5), 5), "sub-byte-remainder")
            v.accepted(f"no_elements_{dtype.lower()}", st(one(dtype, [0, 3], 0, 0)))
    v.accepted("dtype_escaped", st('{"w":{"dtype":"\\u00558","shape":[2],"data_offsets":[0,2]}}', 2))
    v.accepted("values_not_inspected", st(one("BOOL", [2], 0, 2)) + b"\x02\xff")
    v.accepted("values_nan", st(one("F32", [1], 0, 4)) + b"\xff\xff\xff\x7f")
    for name, dtype in [
        ("lower_case", '"u8"'),
        ("empty", '""'),
        ("space", '"U8 "'),
        ("other_name", '"F8_E4M3FN"'),
        ("f128", '"F128"'),
        ("long", '"%s"' % ("U" * 300)),
    ]:
        v.refused(f"dtype_unknown_{name}", st(W_ENTRY.replace('"U8"', dtype).join(['{"w":', "}"]), 2), "unknown-dtype")
    for name, dtype in [("null", "null"), ("number", "8"), ("array", '["U8"]'), ("index", "4")]:
        v.refused(f"dtype_{name}", st(W_ENTRY.replace('"U8"', dtype).join(['{"w":', "}"]), 2), "field-type")
    for name, dtype, code in [
        ("", '{"U8":null}', "ok"),
        ("_of_empty_object", '{"U8":{}}', "field-type"),
        ("_escaped", '{"\\u00558":null}', "ok"),
        ("_unknown", '{"U9":null}', "unknown-dtype"),
        ("_empty", "{}", "field-type"),
        ("_of_number", '{"U8":0}', "field-type"),
        ("_of_false", '{"U8":false}', "field-type"),
        ("_of_array", '{"U8":[]}', "field-type"),
        ("_of_full_object", '{"U8":{"a":null}}', "field-type"),
        ("_of_two", '{"U8":null,"I8":null}', "field-type"),
        ("_of_same", '{"U8":null,"U8":null}', "field-type"),
    ]:
        file = st(W_ENTRY.replace('"U8"', dtype).join(['{"w":', "}"]), 2)
        v.differs(f"dtype_object{name}", file, "field-type", "field-type", code)


# ---- rules 11, 15 and 17: shapes


def shapes(v):
    v.accepted("shape_scalar", st(one("F32", [], 0, 4), 4))
    v.accepted("shape_rank_9", st(one("U8", [1] * 8 + [2], 0, 2), 2))
    v.accepted("shape_rank_64", st(one("U8", [1] * 63 + [2], 0, 2), 2))
    v.accepted("shape_zero", st(one("F32", [0], 0, 0)))
    v.accepted("shape_zero_inside", st(one("F32", [3, 0, 5], 0, 0)))
    for name, shape in [
        ("null", "null"), ("number", "2"), ("string", '"[2]"'), ("object", '{"0":2}'), ("true", "true"),
    ]:  # fmt: skip
        v.refused(f"shape_{name}", st('{"w":{"dtype":"U8","shape":%s,"data_offsets":[0,2]}}' % shape, 2), "field-type")
    for name, offsets in [
        ("empty", "[]"), ("of_one", "[2]"), ("of_three", "[0,2,2]"), ("null", "null"), ("number", "0"),
        ("object", '{"0":0,"1":2}'), ("string", '"0,2"'), ("nested", "[[0,2]]"),
    ]:  # fmt: skip
        v.refused(f"offsets_{name}", st('{"w":{"dtype":"U8","shape":[2],"data_offsets":%s}}' % offsets, 2), "field-type")
    v.refused("mismatch_too_small", st(one("F32", [2], 0, 7), 7), "size-mismatch")
    v.refused("mismatch_too_large", st(one("F32", [2], 0, 9), 9), "size-mismatch")
    v.refused("mismatch_empty_shape", st(one("F32", [0], 0, 4), 4), "size-mismatch")
    v.refused("mismatch_empty_place", st(one("F32", [1], 0, 0)), "size-mismatch")
    v.refused("mismatch_scalar", st(one("F32", [], 0, 0)), "size-mismatch")

    half, quarter = 2**63, 2**32
    v.refused("overflow_elements", st(one("U8", [half, 2], 0, 0)), "shape-overflow")
    v.refused("overflow_elements_to_one", st(one("U8", [quarter, quarter, 1], 0, 0)), "shape-overflow")
    v.refused("overflow_bits", st(one("U8", [2**61], 0, 0)), "shape-overflow")
    v.refused("overflow_bits_to_the_right_size", st(one("U8", [2**61 + 1], 0, 1), 1), "shape-overflow")
    v.refused("overflow_bits_of_u64", st(one("U64", [2**58], 0, 2**61), 2), "shape-overflow")
    v.refused("no_overflow_but_no_bytes", st(one("U8", [2**61 - 1], 0, 2**61 - 1)), "file-truncated")
    # The reference multiplies from the left and gives up before it meets the zero.
    for name, shape in [
        ("huge_then_zero_dim", [half, half, 0]),
        ("huge_between_zero_dims", [2**64 - 1, 2, 0, 2**64 - 1]),
        ("huge_then_zero_dim_small_parts", [quarter, quarter, 0]),
    ]:
        v.differs(name, st(one("F32", shape, 0, 0)), "ok", "ok", "shape-overflow")
    v.accepted("zero_then_huge_dims", st(one("F32", [0, half, half], 0, 0)))
    v.accepted("zero_dim_after_huge", st(one("F32", [2**64 - 1, 0], 0, 0)))
    v.refused("huge_then_zero_dim_but_bytes", st(one("F32", [0, half, half], 0, 4), 4), "size-mismatch")


# ---- rules 13 and 14: where the tensors are


def placement(v):
    def spans(*pairs):
        """U8 tensors `a`, `b`, … at these places."""
        parts = (f'"{chr(97 + i)}":{entry("U8", [max(end - start, 0)], start, end)}' for i, (start, end) in enumerate(pairs))
        return "{%s}" % ",".join(parts)

    v.accepted("order_of_offsets", st(spans((0, 2), (2, 4)), 4))
    v.accepted("order_reversed", st(spans((3, 4), (2, 3), (0, 2)), 4))
    v.accepted("unaligned_tensor", st('{"a":%s,"b":%s}' % (entry("U8", [1], 0, 1), entry("F64", [1], 1, 9)), 9))
    v.accepted("unaligned_header", st("{%s} " % W, 2))
    for name, pairs in [
        ("at_start", [(0, 0), (0, 2)]),
        ("at_start_listed_last", [(0, 2), (0, 0)]),
        ("between", [(0, 2), (2, 2), (2, 4)]),
        ("between_listed_last", [(2, 4), (0, 2), (2, 2)]),
        ("at_end", [(0, 2), (2, 2)]),
        ("many", [(0, 0), (0, 0), (0, 1), (1, 1), (1, 1)]),
        ("alone", [(0, 0), (0, 0)]),
    ]:
        v.accepted(f"empty_{name}", st(spans(*pairs), max(end for _, end in pairs)))
    v.refused("empty_inside_another", st(spans((0, 2), (1, 1)), 2), "overlap")
    v.refused("empty_behind_the_end", st(spans((0, 2), (3, 3)), 2), "hole")
    v.refused("empty_at_2_64_minus_1", st(spans((2**64 - 1, 2**64 - 1))), "hole")
    v.refused("hole_at_start", st(spans((1, 3)), 3), "hole")
    v.refused("hole_of_one_byte", st(spans((0, 2), (3, 5)), 5), "hole")
    v.refused("hole_behind_empty", st(spans((0, 0), (1, 2)), 2), "hole")
    v.refused("overlap_by_one", st(spans((0, 2), (1, 3)), 3), "overlap")
    v.refused("overlap_inside", st(spans((0, 4), (1, 3)), 4), "overlap")
    v.refused("overlap_same_span", st(spans((0, 2), (0, 2)), 2), "overlap")
    v.refused("overlap_listed_first", st(spans((1, 3), (0, 2)), 3), "overlap")
    v.refused("reversed", st(spans((2, 0)), 2), "offsets-reversed")
    v.refused("reversed_by_one", st(spans((0, 2), (2, 1)), 2), "offsets-reversed")
    v.refused("reversed_near_2_64", st(spans((2**64 - 1, 0))), "offsets-reversed")
    v.refused("span_to_2_64_minus_1", st(one("U8", [2], 0, 2**64 - 1), 2), "size-mismatch")
    # The longest tensors whose bits 64 bits can count, one behind the other up to 2^64 - 1.
    longest = 2**61 - 1
    pairs = [(i * longest, (i + 1) * longest) for i in range(8)]
    v.refused("sum_of_spans_near_2_64", st(spans(*pairs, (8 * longest, 2**64 - 1))), "offsets-overflow")
    v.refused("sum_of_spans_below_2_64", st(spans(*pairs[:7])), "file-truncated")


# ---- rule 18: the file ends where the last tensor does


def file_length(v):
    v.refused("truncated_by_1", st("{%s}" % W, 1), "file-truncated")
    v.refused("truncated_whole", st("{%s}" % W), "file-truncated")
    v.refused("truncated_by_a_terabyte", st(one("U8", [10**12], 0, 10**12), 8), "file-truncated")
    v.refused("trailing_1", st("{%s}" % W, 3), "trailing-bytes")
    v.refused("trailing_without_tensors", st("{}", 1), "trailing-bytes")
    v.refused("trailing_behind_empty", st(one("U8", [0], 0, 0), 1), "trailing-bytes")
    v.refused("trailing_second_file", st("{%s}" % W, 2) * 2, "trailing-bytes")


# ---- building files


def prefix(length):
    return struct.pack("<Q", length)


def st(header, data_len=0):
    """A file with this JSON, not padded, and so many bytes of data."""
    header = header if isinstance(header, bytes) else header.encode()
    return prefix(len(header)) + header + bytes(i % 251 for i in range(data_len))


def entry(dtype, shape, start, end):
    fields = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return json.dumps(fields, separators=(",", ":"))


def one(dtype, shape, start, end):
    return '{"w":%s}' % entry(dtype, shape, start, end)


def ignored(value):
    """A header whose tensor has a field that the format does not know."""
    return "{%s}" % W.replace('"dtype"', '"strides":%s,"dtype"' % value)


class Vectors:
    def __init__(self):
        self.rows = {}

    def accepted(self, name, file):
        self.differs(name, file, "ok", "ok", "ok")

    def refused(self, name, file, code):
        self.differs(name, file, code, code, code)

    def differs(self, name, file, strict, default, reference=None):
        """`reference` is as `default` unless it is given."""
        reference = reference or default
        assert name not in self.rows, name
        assert len(file) < 1000, name
        path = HERE / (name + SUFFIX)
        path.write_bytes(file)
        crate = "ok" if reference == "ok" else "refused"
        self.rows[name] = (strict, default, reference, crate, python_verdict(path))

    def write(self):
        columns = ["file", "strict", "default", "reference", "crate", "python"]
        lines = ["\t".join(columns)]
        lines += ["\t".join([name, *self.rows[name]]) for name in sorted(self.rows)]
        (HERE / "verdicts.tsv").write_text("\n".join(lines) + "\n")


def python_verdict(path):
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError:
        return "refused"
    with file:
        try:
            for name in file.keys():
                file.get_tensor(name)
        except Exception:
            return "unreadable"
    return "ok"


if __name__ == "__main__":
    main()
